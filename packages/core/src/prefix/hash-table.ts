import { assert } from "../assert.ts";
import { BLOCK_HASH_BYTES } from "./block-hash.ts";

const NONE = -1;

/**
 * Which blocks hold the KV of a hash. Several may hold the same: two requests computed one text side by side. Chained by the hash's first bits,
 * which are as good as random; a find compares all 16 bytes. No memory is allocated after the start.
 */
export class BlockHashTable {
  readonly #hashes: Uint8Array;
  readonly #known: Uint8Array;
  readonly #heads: Int32Array;
  readonly #nexts: Int32Array;
  #size = 0;

  constructor(blockCount: number) {
    let bucketCount = 16;
    while (bucketCount < blockCount) bucketCount *= 2;
    this.#hashes = new Uint8Array(blockCount * BLOCK_HASH_BYTES);
    this.#known = new Uint8Array(blockCount);
    this.#heads = new Int32Array(bucketCount).fill(NONE);
    this.#nexts = new Int32Array(blockCount).fill(NONE);
  }

  /** Blocks that have a hash. */
  get size(): number {
    return this.#size;
  }

  has(blockId: number): boolean {
    return this.#known[blockId] === 1;
  }

  /** The hash of a block that has one; a view that lasts as long as the block has it. */
  hashOf(blockId: number): Uint8Array {
    assert(this.has(blockId), `block ${blockId} has no hash`);
    return this.#hashes.subarray(blockId * BLOCK_HASH_BYTES, (blockId + 1) * BLOCK_HASH_BYTES);
  }

  /** A block with the hash of 16 bytes at `offset`, other than `except`; undefined when there is none. */
  find(hashes: Uint8Array, offset: number, except = NONE): number | undefined {
    let blockId = this.#heads[this.#bucketOf(hashes, offset)] ?? NONE;
    for (; blockId !== NONE; blockId = this.#nexts[blockId] ?? NONE) {
      if (blockId !== except && this.#isEqual(blockId, hashes, offset)) return blockId;
    }
    return undefined;
  }

  /** Gives a block without a hash the one at `offset`. */
  insert(blockId: number, hashes: Uint8Array, offset: number): void {
    assert(!this.has(blockId), `block ${blockId} has a hash already`);
    this.#hashes.set(hashes.subarray(offset, offset + BLOCK_HASH_BYTES), blockId * BLOCK_HASH_BYTES);
    const bucket = this.#bucketOf(hashes, offset);
    this.#nexts[blockId] = this.#heads[bucket] ?? NONE;
    this.#heads[bucket] = blockId;
    this.#known[blockId] = 1;
    this.#size++;
  }

  /** Takes a block's hash away. */
  remove(blockId: number): void {
    assert(this.has(blockId), `block ${blockId} has no hash`);
    const bucket = this.#bucketOf(this.#hashes, blockId * BLOCK_HASH_BYTES);
    const next = this.#nexts[blockId] ?? NONE;
    let before = this.#heads[bucket] ?? NONE;
    if (before === blockId) this.#heads[bucket] = next;
    else {
      while (this.#nexts[before] !== blockId) before = this.#nexts[before] ?? NONE;
      this.#nexts[before] = next;
    }
    this.#nexts[blockId] = NONE;
    this.#known[blockId] = 0;
    this.#size--;
  }

  #bucketOf(hashes: Uint8Array, offset: number): number {
    const [b0 = 0, b1 = 0, b2 = 0, b3 = 0] = [
      hashes[offset],
      hashes[offset + 1],
      hashes[offset + 2],
      hashes[offset + 3],
    ];
    return ((b0 << 24) | (b1 << 16) | (b2 << 8) | b3) & (this.#heads.length - 1);
  }

  #isEqual(blockId: number, hashes: Uint8Array, offset: number): boolean {
    const own = blockId * BLOCK_HASH_BYTES;
    for (let index = 0; index < BLOCK_HASH_BYTES; index++) {
      if (this.#hashes[own + index] !== hashes[offset + index]) return false;
    }
    return true;
  }
}
