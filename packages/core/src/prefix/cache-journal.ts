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
  /** Changes before it are forgotten. */
  #first = 0;

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

  /** What is there now did not come about by changes: every reader begins anew. */
  clear(): void {
    this.#next++;
    this.#first = this.#next;
  }

  /** At most `countMax` changes from number `from` on. */
  read(from: number, countMax: number): JournalReading {
    assert(from <= this.#next, `change ${from} is read, the next one is ${this.#next}`);
    if (from < Math.max(this.#first, this.#next - this.#capacity)) return { kind: "gap" };
    const end = Math.min(this.#next, from + countMax);
    const places = this.#lastPlaces(from, end);
    const packed = (kind: number): Uint8Array => {
      const hashes = new Uint8Array(places.length * BLOCK_HASH_BYTES);
      let length = 0;
      for (const place of places) {
        if (this.#kinds[place] !== kind) continue;
        hashes.set(this.#hashAt(place), length);
        length += BLOCK_HASH_BYTES;
      }
      return hashes.subarray(0, length);
    };
    return { kind: "changes", stored: packed(STORED), removed: packed(REMOVED), next: end };
  }

  /** Places of the changes [from, end): of a hash that came and went, the last word counts, and stands where it came. */
  #lastPlaces(from: number, end: number): readonly number[] {
    let removedCount = 0;
    const all: number[] = [];
    for (let number = from; number < end; number++) {
      const place = number % this.#capacity;
      if (this.#kinds[place] === REMOVED) removedCount++;
      all.push(place);
    }
    // A hash cannot come twice without going in between.
    if (removedCount === 0 || removedCount === all.length) return all;
    const places = new Map<string, number>();
    for (const place of all) {
      const hash = this.#textAt(place);
      places.delete(hash);
      places.set(hash, place);
    }
    return [...places.values()];
  }

  #textAt(place: number): string {
    let text = "";
    for (let at = place * BLOCK_HASH_BYTES; at < (place + 1) * BLOCK_HASH_BYTES; at++) {
      text += String.fromCharCode(this.#hashes[at]!);
    }
    return text;
  }

  #hashAt(place: number): Uint8Array {
    return this.#hashes.subarray(place * BLOCK_HASH_BYTES, (place + 1) * BLOCK_HASH_BYTES);
  }
}
