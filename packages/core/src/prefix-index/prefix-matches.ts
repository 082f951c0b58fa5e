import { MEDIUM_COUNT, type Medium, mediumRank } from "./media.ts";

/**
 * How much of one prompt each holder has: for each of them the count of leading blocks, and of those on a medium at least as fast as a given
 * one. Filled by `PrefixIndex.match`, to be used again for the next prompt.
 */
export class PrefixMatches {
  /** Holders that have at least the first block: `holders[0 .. size)`, in no particular order. */
  readonly holders: Uint32Array;
  size = 0;
  readonly #lengths: Uint32Array;

  constructor(holderCapacity: number) {
    this.holders = new Uint32Array(holderCapacity);
    this.#lengths = new Uint32Array(holderCapacity * MEDIUM_COUNT);
  }

  /** Leading blocks that a holder has, wherever; those on `medium` or a faster one, where it is given. */
  blockCount(holder: number, medium: Medium = "disk"): number {
    return this.#lengths[holder * MEDIUM_COUNT + mediumRank(medium)]!;
  }

  /** The longest of all. */
  longestBlockCount(): number {
    let longest = 0;
    for (let index = 0; index < this.size; index++) {
      longest = Math.max(longest, this.#lengths[this.holders[index]! * MEDIUM_COUNT + MEDIUM_COUNT - 1]!);
    }
    return longest;
  }

  clear(): void {
    for (let index = 0; index < this.size; index++) {
      const o = this.holders[index]! * MEDIUM_COUNT;
      for (let rank = 0; rank < MEDIUM_COUNT; rank++) this.#lengths[o + rank] = 0;
    }
    this.size = 0;
  }

  /** The leading run of one holder ends after `blockCount` at every rank. */
  endAll(holder: number, blockCount: number): void {
    const o = holder * MEDIUM_COUNT;
    for (let rank = 0; rank < MEDIUM_COUNT; rank++) this.#lengths[o + rank] = blockCount;
    this.holders[this.size++] = holder;
  }

  /** The leading run of one holder at one rank ends after `blockCount`. Rank by rank; the slowest rank names the holder. */
  end(holder: number, rank: number, blockCount: number): void {
    this.#lengths[holder * MEDIUM_COUNT + rank] = blockCount;
    if (rank === MEDIUM_COUNT - 1) this.holders[this.size++] = holder;
  }
}
