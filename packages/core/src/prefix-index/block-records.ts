import { assert } from "../assert.ts";
import { BLOCK_HASH_BYTES } from "../prefix/block-hash.ts";

/** Words of one record: the hash, then what `BlockHolders` keeps of the block. */
export const RECORD_WORDS = 8;
const HEAD = 4;
const COUNT = 7;

const HASH_WORDS = BLOCK_HASH_BYTES / 4;
/** A new id is taken while less than one in so many is free. Larger: less memory, ids less in order. */
const FREE_SHARE = 4;

export const ABSENT = -1;

/**
 * Block hash → block id, by open addressing with linear probing over 32-bit slots; a slot is an id and, in the bits left over, a tag of the
 * hash, so that a probe rarely touches a record that is not the one. Ids are dense and stay the same while a block lives.
 *
 * Blocks that were stored one after another get ids one after another as long as no freed id is taken again: a walk along a prompt tries the
 * next id before it looks in the slots, and then reads memory in order. All memory is asked for at once and touched as it is used.
 */
export class BlockRecords {
  /** `RECORD_WORDS` per block id. */
  readonly words: Uint32Array;
  readonly #slots: Uint32Array;
  readonly #slotMask: number;
  readonly #idMask: number;
  readonly #capacity: number;
  #size = 0;
  /** Ids below were given out at least once. */
  #fresh = 0;
  /** Freed ids, first in first out, linked through `HEAD`; 0: none, else id + 1. */
  #firstFree = 0;
  #lastFree = 0;
  #freeCount = 0;

  constructor(capacity: number) {
    assert(capacity >= 1 && capacity < 2 ** 28, `a prefix index of ${capacity} blocks; use 1 to ${2 ** 28 - 1}`);
    this.#capacity = capacity;
    const slotCount = 2 ** Math.ceil(Math.log2(capacity * 1.5));
    this.#slots = new Uint32Array(slotCount);
    this.#slotMask = slotCount - 1;
    this.#idMask = 2 ** Math.ceil(Math.log2(capacity + 1)) - 1;
    this.words = new Uint32Array(capacity * RECORD_WORDS);
  }

  get size(): number {
    return this.#size;
  }

  /** The id of hash number `at` of `hashes` (four words each), or `ABSENT`. `guess`: an id to try first. */
  find(hashes: Uint32Array, at: number, guess: number): number {
    const o = at * HASH_WORDS;
    const a = hashes[o]!;
    const b = hashes[o + 1]!;
    const c = hashes[o + 2]!;
    const d = hashes[o + 3]!;
    const { words } = this;
    if (guess >= 0 && guess < this.#fresh) {
      const r = guess * RECORD_WORDS;
      const isSame = words[r] === a && words[r + 1] === b && words[r + 2] === c && words[r + 3] === d;
      if (isSame && words[r + COUNT] !== 0) return guess;
    }
    const slots = this.#slots;
    const slotMask = this.#slotMask;
    const idMask = this.#idMask;
    const tag = b & ~idMask;
    for (let slot = a & slotMask; ; slot = (slot + 1) & slotMask) {
      const value = slots[slot]!;
      if (value === 0) return ABSENT;
      if ((value & ~idMask) !== tag) continue;
      const id = (value & idMask) - 1;
      const r = id * RECORD_WORDS;
      if (words[r] === a && words[r + 1] === b && words[r + 2] === c && words[r + 3] === d) return id;
    }
  }

  /** The id for a hash that is absent, its record zero but for the hash; `ABSENT` when there is no room. */
  insert(hashes: Uint32Array, at: number): number {
    const id = this.#takeId();
    if (id === ABSENT) return ABSENT;
    const o = at * HASH_WORDS;
    const r = id * RECORD_WORDS;
    this.words.set(hashes.subarray(o, o + HASH_WORDS), r);
    this.words.fill(0, r + HASH_WORDS, r + RECORD_WORDS);
    let slot = hashes[o]! & this.#slotMask;
    while (this.#slots[slot] !== 0) slot = (slot + 1) & this.#slotMask;
    this.#slots[slot] = (hashes[o + 1]! & ~this.#idMask) | (id + 1);
    this.#size++;
    return id;
  }

  /** Frees an id. What stood behind it in its run of slots moves up, so that no tombstones gather. */
  delete(id: number): void {
    const { words } = this;
    const slots = this.#slots;
    const slotMask = this.#slotMask;
    let hole = words[id * RECORD_WORDS]! & slotMask;
    while ((slots[hole]! & this.#idMask) !== id + 1) {
      assert(slots[hole] !== 0, `block ${id} has a record and no slot`);
      hole = (hole + 1) & slotMask;
    }
    for (let next = (hole + 1) & slotMask; slots[next] !== 0; next = (next + 1) & slotMask) {
      const home = words[((slots[next]! & this.#idMask) - 1) * RECORD_WORDS]! & slotMask;
      // It may move to the hole only if the hole is not before its home.
      if (((next - home) & slotMask) < ((next - hole) & slotMask)) continue;
      slots[hole] = slots[next]!;
      hole = next;
    }
    slots[hole] = 0;
    this.#giveId(id);
    this.#size--;
  }

  #takeId(): number {
    // Ids never used come in order, freed ones do not; but memory is not touched while a good part of what was touched is free.
    const isScarce = this.#freeCount * FREE_SHARE <= this.#fresh;
    if (isScarce && this.#fresh < this.#capacity) return this.#fresh++;
    if (this.#firstFree === 0) return ABSENT;
    this.#freeCount--;
    const id = this.#firstFree - 1;
    this.#firstFree = this.words[id * RECORD_WORDS + HEAD]!;
    if (this.#firstFree === 0) this.#lastFree = 0;
    return id;
  }

  #giveId(id: number): void {
    this.words[id * RECORD_WORDS + HEAD] = 0;
    this.words[id * RECORD_WORDS + COUNT] = 0;
    if (this.#lastFree === 0) this.#firstFree = id + 1;
    else this.words[(this.#lastFree - 1) * RECORD_WORDS + HEAD] = id + 1;
    this.#lastFree = id + 1;
    this.#freeCount++;
  }

  checkInvariants(): void {
    let used = 0;
    for (let id = 0; id < this.#fresh; id++) {
      const r = id * RECORD_WORDS;
      if (this.words[r + COUNT] === 0) continue;
      used++;
      assert(
        this.find(this.words.subarray(r, r + HASH_WORDS), 0, ABSENT) === id,
        `block ${id} is not found by its hash`,
      );
    }
    assert(used === this.#size, `${used} records are used and ${this.#size} are counted`);
    assert(this.#slots.reduce((sum, slot) => sum + (slot === 0 ? 0 : 1), 0) === used, "slots and records differ");
  }
}

/** Packed hashes as words; copied only where they are not aligned. Byte order is the machine's, the same for all. */
export function hashWords(hashes: Uint8Array): Uint32Array {
  assert(
    hashes.length % BLOCK_HASH_BYTES === 0,
    `${hashes.length} bytes of hashes are not whole hashes of ${BLOCK_HASH_BYTES}`,
  );
  // A copy of a Uint8Array by `slice` would be a view where it is one of Node's buffers.
  const aligned = hashes.byteOffset % 4 === 0 ? hashes : new Uint8Array(hashes);
  return new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.length / 4);
}
