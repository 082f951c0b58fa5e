import { assert } from "../assert.ts";
import { BLOCK_HASH_BYTES } from "./block-hash.ts";

const STORED = 1;
const REMOVED = 0;

export type CacheChangeKind = "stored" | "removed";

/** Every way `read` can end. */
export type JournalReading =
  /** What the changes come to, 16 bytes for each hash: none is in both. */
  | { readonly kind: "changes"; readonly stored: Uint8Array; readonly removed: Uint8Array; readonly next: number }
  /** What followed is forgotten; begin anew from a snapshot. */
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
    this.#kinds[place] = kind === "stored" ? STORED : REMOVED;
    this.#next++;
  }

  /** At most `countMax` changes from number `from` on. */
  read(from: number, countMax: number): JournalReading {
    assert(from <= this.#next, `change ${from} is read, the next one is ${this.#next}`);
    if (from < this.#next - this.#capacity) return { kind: "gap" };
    const end = Math.min(this.#next, from + countMax);
    const places = new Map<string, number>();
    for (let number = from; number < end; number++) {
      const place = number % this.#capacity;
      // Of a hash that came and went, the last word counts; and what came last stands where it came.
      const hash = String.fromCharCode(...this.#hashAt(place));
      places.delete(hash);
      places.set(hash, place);
    }
    const packed = (kind: number): Uint8Array => {
      const chosen = [...places.values()].filter((place) => this.#kinds[place] === kind);
      const hashes = new Uint8Array(chosen.length * BLOCK_HASH_BYTES);
      for (const [index, place] of chosen.entries()) hashes.set(this.#hashAt(place), index * BLOCK_HASH_BYTES);
      return hashes;
    };
    return { kind: "changes", stored: packed(STORED), removed: packed(REMOVED), next: end };
  }

  #hashAt(place: number): Uint8Array {
    return this.#hashes.subarray(place * BLOCK_HASH_BYTES, (place + 1) * BLOCK_HASH_BYTES);
  }
}
