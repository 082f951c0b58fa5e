import type { BlockFacts, EvictionPolicy } from "./eviction-policy.ts";
import { SlotList } from "./slot-list.ts";

/** Share of the slots in the small queue. */
const SMALL_SHARE = 0.1;
const USES_MAX = 3;
const [ABSENT, SMALL, MAIN] = [0, 1, 2];

/**
 * S3-FIFO (Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1): new blocks pass a small
 * queue; those used at least twice there go on to the main queue, the others leave and are remembered as ghosts, which return to the main
 * queue at once. The main queue gives those that were used another round.
 */
export class S3FifoPolicy implements EvictionPolicy {
  readonly #small: SlotList;
  readonly #main: SlotList;
  readonly #where: Uint8Array;
  readonly #uses: Uint8Array;
  readonly #keyBits: Uint32Array;
  readonly #smallCount: number;
  /** Keys that left the small queue, oldest first. */
  readonly #ghosts = new Set<number>();
  readonly #ghostMax: number;

  constructor(slotCount: number) {
    this.#small = SlotList.over(slotCount);
    this.#main = this.#small.sibling();
    this.#where = new Uint8Array(slotCount);
    this.#uses = new Uint8Array(slotCount);
    this.#keyBits = new Uint32Array(slotCount);
    this.#smallCount = Math.max(1, Math.round(slotCount * SMALL_SHARE));
    this.#ghostMax = Math.max(1, slotCount - this.#smallCount);
  }

  get size(): number {
    return this.#small.size + this.#main.size;
  }

  insert(slot: number, { keyBits }: BlockFacts): void {
    this.#uses[slot] = 0;
    this.#keyBits[slot] = keyBits;
    this.#push(slot, this.#ghosts.delete(keyBits >>> 0) ? MAIN : SMALL);
  }

  touch(slot: number): void {
    this.#uses[slot] = Math.min(USES_MAX, (this.#uses[slot] ?? 0) + 1);
  }

  remove(slot: number): void {
    if (this.#where[slot] === SMALL) this.#small.remove(slot);
    else if (this.#where[slot] === MAIN) this.#main.remove(slot);
    this.#where[slot] = ABSENT;
  }

  evict(): number | undefined {
    for (;;) {
      const fromSmall = this.#small.size >= this.#smallCount || this.#main.size === 0;
      const slot = fromSmall ? this.#small.first() : this.#main.first();
      if (slot === undefined) return undefined;
      const uses = this.#uses[slot] ?? 0;
      this.remove(slot);
      if (fromSmall && uses > 1) {
        this.#uses[slot] = 0;
        this.#push(slot, MAIN);
      } else if (!fromSmall && uses > 0) {
        this.#uses[slot] = uses - 1;
        this.#push(slot, MAIN);
      } else {
        if (fromSmall) this.#remember(this.#keyBits[slot] ?? 0);
        return slot;
      }
    }
  }

  #push(slot: number, where: number): void {
    this.#where[slot] = where;
    (where === MAIN ? this.#main : this.#small).push(slot);
  }

  #remember(keyBits: number): void {
    this.#ghosts.add(keyBits);
    if (this.#ghosts.size <= this.#ghostMax) return;
    for (const oldest of this.#ghosts) {
      this.#ghosts.delete(oldest);
      return;
    }
  }
}
