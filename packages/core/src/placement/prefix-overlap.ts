import {
  type HolderEvent,
  type HolderEventOutcome,
  PrefixIndex,
  type PrefixIndexOptions,
  PrefixMatches,
} from "../prefix-index/index.ts";
import type { PromptHashes, RequestShape, WorkerFacts } from "./worker-facts.ts";

/** Tokens of one request's prompt that a worker need not compute: whole blocks of its cache, and never the last token. */
export type CachedTokensOf = (facts: WorkerFacts) => number;

/** Entries of workers that left which are freed between two other events. */
const SWEEP_BLOCKS = 4_096;

/** What the workers say of their caches, asked for one prompt at a time. A hint: each worker looks for itself when it has the request. */
export class PrefixOverlap {
  readonly #index: PrefixIndex;
  /** Of the last question, one for each layout. */
  readonly #matches: PrefixMatches[] = [];

  constructor(options: PrefixIndexOptions) {
    this.#index = new PrefixIndex(options);
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

  /** One look-up for each layout of the request's hashes; the answer holds until the next one is asked for. */
  of({ promptHashes = [], promptTokenCount }: RequestShape): CachedTokensOf {
    while (this.#matches.length < promptHashes.length) {
      this.#matches.push(new PrefixMatches(this.#index.holderCapacity));
    }
    for (const [index, { hashes }] of promptHashes.entries()) this.#index.match(hashes, this.#matches[index]);
    return ({ workerId, exactFingerprint, blockSize }) => {
      for (let layout = 0; layout < promptHashes.length; layout++) {
        const { fingerprint, blockSize: size } = promptHashes[layout] as PromptHashes;
        if (size !== blockSize || fingerprint !== exactFingerprint) continue;
        const matches = this.#matches[layout] as PrefixMatches;
        const holder = matches.size === 0 ? undefined : this.#index.holderNumber(workerId);
        if (holder === undefined) return 0;
        return (
          Math.min(matches.blockCount(holder, "device"), Math.floor((promptTokenCount - 1) / blockSize)) * blockSize
        );
      }
      return 0;
    };
  }
}
