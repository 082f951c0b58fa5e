import {
  type HolderEvent,
  type HolderEventOutcome,
  PrefixIndex,
  type PrefixIndexOptions,
  PrefixMatches,
} from "../prefix-index/index.ts";
import type { RequestShape, WorkerFacts } from "./worker-facts.ts";

/** Tokens of one request's prompt that a worker need not compute: whole blocks of its cache, and never the last token. */
export type CachedTokensOf = (facts: WorkerFacts) => number;

/** Entries of workers that left which are freed between two other events. */
const SWEEP_BLOCKS = 4_096;

/** What the workers say of their caches, asked for one prompt at a time. A hint: each worker looks for itself when it has the request. */
export class PrefixOverlap {
  readonly #index: PrefixIndex;
  readonly #matches: PrefixMatches;

  constructor(options: PrefixIndexOptions) {
    this.#index = new PrefixIndex(options);
    this.#matches = new PrefixMatches(options.holderCapacity);
  }

  /** Distinct blocks known. */
  get blockCount(): number {
    return this.#index.blockCount;
  }

  /** Blocks known of a worker. */
  blockCountOf(workerId: string): number {
    return this.#index.blockCountOf(workerId);
  }

  apply(workerId: string, event: HolderEvent): HolderEventOutcome {
    return this.#index.apply(workerId, event);
  }

  workerLeft(workerId: string): void {
    this.#index.removeHolder(workerId);
  }

  sweep(): void {
    this.#index.sweep(SWEEP_BLOCKS);
  }

  /** One look-up for each layout of the request's hashes; the answer holds what was known then. */
  of({ promptHashes = [], promptTokenCount }: RequestShape): CachedTokensOf {
    const found = new Map<string, number>();
    for (const { fingerprint, blockSize, hashes } of promptHashes) {
      const matches = this.#index.match(hashes, this.#matches);
      const blockCountMax = Math.floor((promptTokenCount - 1) / blockSize);
      for (let index = 0; index < matches.size; index++) {
        const holder = matches.holders[index] ?? 0;
        const blockCount = Math.min(matches.blockCount(holder, "device"), blockCountMax);
        found.set(`${this.#index.holderId(holder)} ${fingerprint} ${blockSize}`, blockCount * blockSize);
      }
    }
    return ({ workerId, fingerprint, blockSize }) => found.get(`${workerId} ${fingerprint} ${blockSize}`) ?? 0;
  }
}
