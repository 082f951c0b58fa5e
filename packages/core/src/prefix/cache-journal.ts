import { assert } from "../assert.ts";
import { BLOCK_HASH_BYTES } from "./block-hash.ts";

export type CacheChangeKind = "stored" | "removed";

/** Changes of one kind in a row. */
export interface CacheChangeRun {
  readonly kind: CacheChangeKind;
  /** 16 bytes each. */
  readonly hashes: Uint8Array;
}

/** Every way `read` can end. `gap`: what followed is forgotten; begin anew from a snapshot. */
export type JournalReading =
  | { readonly kind: "changes"; readonly runs: readonly CacheChangeRun[]; readonly next: number }
  | { readonly kind: "gap" };

/**
 * The latest changes of what a worker's cache holds, numbered from 0, for readers that each are at their own place. A hash is `stored` when the
 * first block with it is there, and `removed` when the last one is gone, so that a reader needs to keep no counts.
 */
export class CacheJournal {
  readonly #hashes: Uint8Array;
  readonly #kinds: Uint8Array;
  readonly #capacity: number;
  #next = 0;

  /** `capacity`: changes that are remembered. Larger: a slow reader catches up with differences; smaller: with a snapshot. */
  constructor(capacity: number) {
    this.#capacity = capacity;
    this.#hashes = new Uint8Array(capacity * BLOCK_HASH_BYTES);
    this.#kinds = new Uint8Array(capacity);
  }

  /** Number of the change that comes next. */
  get next(): number {
    return this.#next;
  }

  append(kind: CacheChangeKind, hash: Uint8Array): void {
    const place = this.#next % this.#capacity;
    this.#hashes.set(hash, place * BLOCK_HASH_BYTES);
    this.#kinds[place] = kind === "stored" ? 1 : 0;
    this.#next++;
  }

  /** At most `countMax` changes from number `from` on. */
  read(from: number, countMax: number): JournalReading {
    assert(from <= this.#next, `change ${from} is read, the next one is ${this.#next}`);
    if (from < this.#next - this.#capacity) return { kind: "gap" };
    const end = Math.min(this.#next, from + countMax);
    const runs: CacheChangeRun[] = [];
    for (let begin = from; begin < end; ) {
      let runEnd = begin + 1;
      while (runEnd < end && this.#kindAt(runEnd) === this.#kindAt(begin)) runEnd++;
      const hashes = new Uint8Array((runEnd - begin) * BLOCK_HASH_BYTES);
      for (let number = begin; number < runEnd; number++) {
        const place = (number % this.#capacity) * BLOCK_HASH_BYTES;
        hashes.set(this.#hashes.subarray(place, place + BLOCK_HASH_BYTES), (number - begin) * BLOCK_HASH_BYTES);
      }
      runs.push({ kind: this.#kindAt(begin) === 1 ? "stored" : "removed", hashes });
      begin = runEnd;
    }
    return { kind: "changes", runs, next: end };
  }

  #kindAt(number: number): number {
    return this.#kinds[number % this.#capacity] ?? 0;
  }
}
