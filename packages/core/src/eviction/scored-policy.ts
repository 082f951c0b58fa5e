import type { Instant } from "../time.ts";
import type { BlockFacts, EvictionPolicy } from "./eviction-policy.ts";
import { ScoreQueue } from "./score-queue.ts";
import { UseSketch } from "./use-sketch.ts";

export interface ScoredPolicyOptions {
  /**
   * Time by which each doubling of a block's uses makes it outlive others. Larger: conversations that went on stay through a flood of new ones;
   * smaller: nearer to LRU. About the time between two turns of a conversation.
   */
  readonly creditSecondsPerDoubling: number;
  /** Time by which a token further back in its text leaves sooner. Larger: beginnings stay alone; smaller: texts leave whole. */
  readonly secondsPerToken: number;
}

export const SCORED_POLICY_DEFAULTS: ScoredPolicyOptions = { creditSecondsPerDoubling: 120, secondsPerToken: 0.004 };

/**
 * The default. The block with the lowest score leaves, where
 *
 *     score = last use + credit · log2(uses · worth) − position · secondsPerToken
 *
 * A member of the GreedyDual family (GDSF: Cherkasova, HP Labs 1998): recency plus what the block is worth, uses · cost / size. Other than
 * there, the clock is time instead of the score evicted last, so that what idles ages however fast the tier turns over; worth counts by its
 * logarithm, so that one block used a thousand times does not outstay a night; and uses are remembered for keys that are gone, so that what
 * comes back for the second time is known (the ghosts of S3-FIFO and TinyLFU). A prefix is useless without its beginning, therefore ends
 * leave before beginnings. O(log blocks) a use, 16 bytes a slot and as many for the sketch.
 */
export class ScoredPolicy implements EvictionPolicy {
  readonly #queue: ScoreQueue;
  readonly #uses: UseSketch;
  readonly #options: ScoredPolicyOptions;

  /** `uses`: of several times as many keys as are held: a use is worth remembering for longer than a block is worth its memory. */
  constructor(
    slotCount: number,
    options: Partial<ScoredPolicyOptions> = {},
    uses = new UseSketch(Math.max(4 * slotCount, 1 << 18)),
  ) {
    this.#queue = new ScoreQueue(slotCount);
    this.#uses = uses;
    this.#options = { ...SCORED_POLICY_DEFAULTS, ...options };
  }

  get size(): number {
    return this.#queue.size;
  }

  insert(slot: number, facts: BlockFacts, now: Instant): void {
    this.touch(slot, facts, now);
  }

  touch(slot: number, facts: BlockFacts, now: Instant): void {
    this.#file(slot, facts, this.#uses.add(facts.keyBits), now);
  }

  /** Puts a slot back that had to stay, or whose use was counted elsewhere. */
  restore(slot: number, facts: BlockFacts, now: Instant): void {
    this.#file(slot, facts, Math.max(1, this.#uses.count(facts.keyBits)), now);
  }

  remove(slot: number): void {
    this.#queue.delete(slot);
  }

  evict(): number | undefined {
    const slot = this.#queue.first();
    if (slot !== undefined) this.#queue.delete(slot);
    return slot;
  }

  #file(slot: number, { position, worth }: BlockFacts, uses: number, now: Instant): void {
    const { creditSecondsPerDoubling, secondsPerToken } = this.#options;
    this.#queue.set(slot, now / 1e9 + creditSecondsPerDoubling * Math.log2(uses * worth) - position * secondsPerToken);
  }
}
