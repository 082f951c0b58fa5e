import {
  type CodecLevelFacts,
  type CodecProfileFacts,
  type Instant,
  type KvAccuracy,
  RecentTimes,
  TransferBook,
} from "@kvasir/core";
import { SimulatedLink } from "@kvasir/core/testing/prefix-fetch/simulated-link";
import { type LoadWorld, simulateLoad } from "@kvasir/core/testing/prefix-fetch/simulated-load";

/** From the last KV to the first token. */
export const TAIL_MS = 30;
/** Pulls of a context that comes at one level. */
const PULL_TOKENS = 64;
const SOURCE = "source";

/** A context and how it is loaded. */
export interface SimulatedContext {
  readonly tokenCount: number;
  readonly blockSize: number;
  readonly bytesPerToken: number;
}

/** Everything computed. */
export function textMs({ computeMsPerToken }: LoadWorld, { tokenCount }: SimulatedContext): number {
  return tokenCount * computeMsPerToken + TAIL_MS;
}

/** Everything at one level. */
export function levelMs({ levels, rate }: LoadWorld, context: SimulatedContext, level: number): number {
  const { tokenCount, bytesPerToken } = context;
  const link = new SimulatedLink(levels, bytesPerToken);
  for (let begin = 0; begin < tokenCount; begin += PULL_TOKENS) {
    link.pull({ begin, end: Math.min(tokenCount, begin + PULL_TOKENS) }, level, 0);
  }
  for (let ms = 1; ; ms++) {
    link.tick(ms, rate(ms));
    if (link.pulls.size === 0) return ms + TAIL_MS;
  }
}

/** A worker with a budget and an objective that has seen its link once, at that speed, and learns of it from load to load. */
export class SimulatedWorker {
  readonly #profile: CodecProfileFacts;
  readonly #book: TransferBook;
  readonly #computeMs: RecentTimes;

  constructor(profile: CodecProfileFacts, bytesPerMs: number, computeMsPerToken: number) {
    this.#profile = profile;
    this.#book = new TransferBook([profile]);
    this.#computeMs = new RecentTimes(computeMsPerToken);
    const traffic = { wireBytes: 1e6, rawBytes: 1e6, encodeMs: 0, decodeMs: 0 };
    this.#book.begin(SOURCE);
    this.#book.observe(SOURCE, undefined, new Map([[0, traffic]]), 1e6 / bytesPerMs, 0 as Instant);
    this.#book.end(SOURCE);
  }

  loadMs(world: LoadWorld, context: SimulatedContext, budget: KvAccuracy, objectiveMs: number): number {
    const { ms } = simulateLoad(world, {
      ...{ ...context, budget, book: this.#book, deadlineMs: Math.max(1, objectiveMs - TAIL_MS) },
      computeMsPerToken: () => this.#computeMs.feared ?? world.computeMsPerToken,
      computed: (msPerToken) => this.#computeMs.add(msPerToken),
      source: { peer: SOURCE, peerProfileIds: [this.#profile.id], isWhole: true },
    });
    return ms + TAIL_MS;
  }
}

/** Levels that nobody should use stand in as raw, so that numbers stay. */
export function levelsOf({ levels }: CodecProfileFacts): readonly CodecLevelFacts[] {
  return levels.map((level) => level ?? (levels[0] as CodecLevelFacts));
}
