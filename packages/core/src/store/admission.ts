import { UseSketch } from "../eviction/use-sketch.ts";
import { BLOCK_HASH_BYTES } from "../prefix/block-hash.ts";
import { keyBits } from "./key-bits.ts";

/**
 * Which blocks are worth storing.
 * - `all`: every one. For stores that are much larger than the workers' caches.
 * - `second-hit`: what a second request uses: most prompts never come again.
 * - `cost`: also what is used for the first time, if the time that it saves, should it come again, is more than storing it takes.
 */
export const ADMISSION_POLICIES = ["all", "second-hit", "cost"] as const;
export type AdmissionPolicy = (typeof ADMISSION_POLICIES)[number];

export interface AdmissionOptions {
  readonly policy: AdmissionPolicy;
  /** Blocks whose uses are remembered; some times those that are stored. */
  readonly keyCount: number;
  readonly blockTokenCount: number;
  readonly blockBytes: number;
  /** At which blocks come from workers and go to them. */
  readonly bytesPerSecond: number;
}

/** One request's use of the first blocks of its text. */
export interface BlocksUse {
  /** Several workers tell of one request: its blocks count as one use. */
  readonly requestId: string;
  /** 16 bytes each, in order. */
  readonly hashes: Uint8Array;
  /** Of the worker that tells; 0: not known. */
  readonly prefillTokensPerSecond: number;
}

/** Requests whose uses are told apart from new ones. Larger: workers may tell later; smaller: less memory. */
const REQUESTS_REMEMBERED = 8_192;
/** Blocks seen after which their statistics weigh half. Larger: steadier; smaller: follows the traffic. */
const SEEN_HALVED_AFTER = 100_000;

/**
 * Admission to a store: counts how often requests used each block and says how many of a text's first blocks are worth a pull. A hole makes
 * what follows it useless, so the answer is a count. For `cost` a block of `s` seconds of computing is taken at its first use when
 *
 *     p · (s − bytes / bytesPerSecond) > bytes / bytesPerSecond
 *
 * with p the share of blocks that came again among those seen so far. Idea: TinyLFU's admission by frequency (Einziger, Friedman and Manes, ACM
 * ToS 2017) with the cost of GreedyDual in place of a victim's frequency, since what is admitted is decided before what leaves is known.
 */
export class StoreAdmission {
  readonly #options: AdmissionOptions;
  readonly #uses: UseSketch;
  /** Blocks of a request that are counted. */
  readonly #counted = new Map<string, number>();
  #seenOnce = 0;
  #seenAgain = 0;

  constructor(options: AdmissionOptions) {
    this.#options = options;
    this.#uses = new UseSketch(options.keyCount);
  }

  /** Chance that a block that was used once is used again. */
  get againChance(): number {
    return (this.#seenAgain + 1) / (this.#seenOnce + 2);
  }

  /** Uses counted of the block at `offset`. */
  usesOf(hashes: Uint8Array, offset = 0): number {
    return this.#uses.count(keyBits(hashes, offset));
  }

  /** Takes note of a use. Answers with how many of the blocks, from the first on, are worth storing. */
  used({ requestId, hashes, prefillTokensPerSecond }: BlocksUse): number {
    const blockCount = hashes.length / BLOCK_HASH_BYTES;
    const counted = this.#counted.get(requestId) ?? 0;
    for (let index = counted; index < blockCount; index++) this.#count(keyBits(hashes, index * BLOCK_HASH_BYTES));
    this.#remember(requestId, Math.max(counted, blockCount));
    const isWorthAtOnce = this.#isWorthAtOnce(prefillTokensPerSecond);
    if (isWorthAtOnce) return blockCount;
    let admitted = 0;
    while (admitted < blockCount && this.usesOf(hashes, admitted * BLOCK_HASH_BYTES) > 1) admitted++;
    return admitted;
  }

  #isWorthAtOnce(prefillTokensPerSecond: number): boolean {
    const { policy, blockTokenCount, blockBytes, bytesPerSecond } = this.#options;
    if (policy !== "cost" || prefillTokensPerSecond <= 0) return policy === "all";
    const moveSeconds = blockBytes / bytesPerSecond;
    return this.againChance * (blockTokenCount / prefillTokensPerSecond - moveSeconds) > moveSeconds;
  }

  #count(bits: number): void {
    const uses = this.#uses.add(bits);
    if (uses === 1) this.#seenOnce++;
    if (uses === 2) this.#seenAgain++;
    if (this.#seenOnce < SEEN_HALVED_AFTER) return;
    this.#seenOnce /= 2;
    this.#seenAgain /= 2;
  }

  #remember(requestId: string, blockCount: number): void {
    this.#counted.delete(requestId);
    this.#counted.set(requestId, blockCount);
    if (this.#counted.size <= REQUESTS_REMEMBERED) return;
    const oldest = this.#counted.keys().next().value;
    if (oldest !== undefined) this.#counted.delete(oldest);
  }
}
