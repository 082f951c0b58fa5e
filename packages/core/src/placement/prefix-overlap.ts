import {
  type HolderEvent,
  type HolderEventOutcome,
  PrefixIndex,
  type PrefixIndexOptions,
  PrefixMatches,
} from "../prefix-index/index.ts";
import type { HeldPrefix } from "./fetch-plan.ts";
import type { AttachedStore } from "./store-facts.ts";
import type { PromptHashes, RequestShape, WorkerFacts } from "./worker-facts.ts";

/** Tokens of one request's prompt that a worker need not compute: whole blocks of its cache, and never the last token. */
export type CachedTokensOf = (facts: WorkerFacts) => number;

/**
 * What stores have of one request's prompt, for a worker's layout: whole blocks, and never the last token. The one that has most comes first, among
 * equals the one that has most in memory, then by id.
 */
export type StoredPrefixesOf = (facts: Pick<WorkerFacts, "exactFingerprint" | "blockSize">) => readonly HeldPrefix[];

const NOTHING_STORED: readonly HeldPrefix[] = [];

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

  /** The same of a store, whose name a worker may have too. */
  applyOfStore(storeId: string, event: HolderEvent): HolderEventOutcome {
    return this.#index.apply(holderIdOfStore(storeId), event);
  }

  storeLeft(storeId: string): void {
    this.#index.removeHolder(holderIdOfStore(storeId));
  }

  /** What the stores that lend have of the prompt that `of` was asked about last. */
  storedOf(
    { model, promptHashes = [], promptTokenCount }: RequestShape,
    stores: readonly AttachedStore[],
  ): StoredPrefixesOf | undefined {
    if (stores.length === 0) return undefined;
    /** By layout. */
    const known: (readonly HeldPrefix[] | undefined)[] = [];
    return ({ exactFingerprint, blockSize }) => {
      const layout = promptHashes.findIndex(
        (entry) => entry.fingerprint === exactFingerprint && entry.blockSize === blockSize,
      );
      const matches = this.#matches[layout];
      if (matches === undefined || matches.size === 0) return NOTHING_STORED;
      const before = known[layout];
      if (before !== undefined) return before;
      const blockMax = Math.floor((promptTokenCount - 1) / blockSize);
      const found: HeldPrefix[] = [];
      for (const store of stores) {
        const { facts } = store;
        if (facts.model !== model || facts.exactFingerprint !== exactFingerprint || facts.blockSize !== blockSize)
          continue;
        const holder = this.#index.holderNumber(holderIdOfStore(facts.workerId));
        if (holder === undefined) continue;
        const tokenEnd = Math.min(matches.blockCount(holder), blockMax) * blockSize;
        const memoryTokenEnd = Math.min(matches.blockCount(holder, "store") * blockSize, tokenEnd);
        const held = { holder: store, tokenEnd, isStore: true, diskTokenCount: tokenEnd - memoryTokenEnd };
        if (tokenEnd > 0) found.push(held);
      }
      found.sort((a, b) => (isBetter(a, b) ? -1 : 1));
      known[layout] = found;
      return found;
    };
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

function holderIdOfStore(storeId: string): string {
  return `store/${storeId}`;
}

function isBetter(a: HeldPrefix, b: HeldPrefix): boolean {
  const more = a.tokenEnd - b.tokenEnd || b.diskTokenCount - a.diskTokenCount;
  return more > 0 || (more === 0 && a.holder.facts.workerId < b.holder.facts.workerId);
}
