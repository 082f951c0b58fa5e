import { assert } from "../assert.ts";
import { BLOCK_HASH_BYTES } from "../prefix/block-hash.ts";
import { CacheJournal } from "../prefix/cache-journal.ts";
import { BlockHashTable } from "../prefix/hash-table.ts";
import { BlockQueue } from "./block-queue.ts";

/** A physical block of the sidecar's KV pool: a dense index from 0. */
export type BlockId = number & { readonly __brand: "BlockId" };

/** Every way `reserve` can end. A full pool is an outcome to wait for or to place around, not an error. */
export type ReserveOutcome =
  | { readonly kind: "reserved" }
  | { readonly kind: "full"; readonly missingBlockCount: number };

/** Changes of the cache that are remembered for its readers, at least; as many as there are blocks, if there are more. */
const JOURNAL_MIN = 4_096;

/**
 * Physical blocks, the promises on them, and the KV that they still hold when nobody needs them. An owner first reserves a *count*, later takes
 * physical blocks out of its reservation, and in the end frees them. Because a reservation is subtracted from what others may reserve, `take`
 * within one's reservation never fails: `reservedCount <= freeCount` always holds.
 *
 * A block is held by one or more, or free. A free block is *blank*, or *idle*: it still has the KV of a hash (`keep`), may be reused by it
 * (`find`, then `reserve` or `reuse`), and counts as free for every promise. Blank blocks are taken first: the lowest free run that fits, then the
 * lowest single blocks, so that sequences lie in long runs (a run of blocks is one transfer). Then idle ones are evicted, the least recently used
 * first, and of one sequence the last block first: a prefix is worth more than what follows it (vLLM, `block_pool.py`). Two pools of the same
 * history choose the same ids. `take` costs O(blocks scanned) from the lowest blank one, and O(1) for each evicted one.
 *
 * Of two free blocks with one hash only one stays idle, so that none is wasted on what is there already.
 */
export class BlockPool {
  readonly blockCount: number;
  /** What came into the cache and went out of it. */
  readonly journal: CacheJournal;
  /** Who holds each block; 0 where it is free. */
  readonly #holderCounts: Uint16Array;
  readonly #reservations = new Map<number, number>();
  readonly #table: BlockHashTable;
  /** Least recently used first. */
  readonly #idle: BlockQueue;
  #freeCount: number;
  #reservedCount = 0;
  #evictedCount = 0;
  /** No block below this is blank. */
  #lowestBlank = 0;

  constructor(blockCount: number) {
    assert(
      Number.isSafeInteger(blockCount) && blockCount > 0,
      `block count is ${blockCount}, must be a positive integer`,
    );
    this.blockCount = blockCount;
    this.journal = new CacheJournal(Math.max(JOURNAL_MIN, blockCount));
    this.#holderCounts = new Uint16Array(blockCount);
    this.#table = new BlockHashTable(blockCount);
    this.#idle = new BlockQueue(blockCount);
    this.#freeCount = blockCount;
  }

  /** Blocks that nobody holds, reserved and idle ones among them. */
  get freeCount(): number {
    return this.#freeCount;
  }

  /** Blocks promised and not yet taken. */
  get reservedCount(): number {
    return this.#reservedCount;
  }

  /** Blocks that can still be promised. */
  get availableCount(): number {
    return this.#freeCount - this.#reservedCount;
  }

  /** Blocks that somebody holds. */
  get takenCount(): number {
    return this.blockCount - this.#freeCount;
  }

  /** Free blocks with KV that may be reused. */
  get idleCount(): number {
    return this.#idle.size;
  }

  /** Blocks whose KV may be reused, held ones among them. */
  get cachedCount(): number {
    return this.#table.size;
  }

  /** Idle blocks that were given to others so far. */
  get evictedCount(): number {
    return this.#evictedCount;
  }

  /**
   * Promises `count` blocks to `owner`, who must have no reservation yet, and gives it `reused`, found blocks, as the first of them. A reused
   * block that somebody holds takes nothing from what is free.
   */
  reserve(owner: number, count: number, reused: readonly BlockId[] = []): ReserveOutcome {
    assert(!this.#reservations.has(owner), `owner ${owner} reserves twice`);
    assert(count >= reused.length, `owner ${owner} reserves ${count} blocks and reuses ${reused.length}`);
    const missingBlockCount = count - this.heldCount(reused) - this.availableCount;
    if (missingBlockCount > 0) return { kind: "full", missingBlockCount };
    this.#reservations.set(owner, count - reused.length);
    this.#reservedCount += count - reused.length;
    for (const blockId of reused) this.#hold(blockId);
    return { kind: "reserved" };
  }

  /** How many of the blocks somebody holds. */
  heldCount(blockIds: readonly BlockId[]): number {
    return blockIds.reduce((count, blockId) => (this.holderCount(blockId) > 0 ? count + 1 : count), 0);
  }

  /** Turns `count` blocks of the owner's reservation into physical ones. Asking for more than is reserved is a defect. */
  take(owner: number, count: number): BlockId[] {
    this.#spend(owner, count);
    if (count === 0) return [];
    const blankCount = this.#freeCount - this.#idle.size;
    const blockIds = blankCount >= count ? (this.#findRun(count) ?? this.#findLowest(count)) : this.#evict(count);
    for (const blockId of blockIds) this.#holderCounts[blockId] = 1;
    this.#freeCount -= count;
    return blockIds;
  }

  /** Gives the owner found blocks in place of as many of its reservation. */
  reuse(owner: number, blockIds: readonly BlockId[]): void {
    this.#spend(owner, blockIds.length);
    for (const blockId of blockIds) this.#hold(blockId);
  }

  /** Gives back what the owner reserved and did not take. Unknown owners are fine. */
  cancelReservation(owner: number): void {
    this.#reservedCount -= this.#reservations.get(owner) ?? 0;
    this.#reservations.delete(owner);
  }

  /** Adds a holder to blocks that are taken; each holder frees them once. Takes nothing out of a reservation. */
  share(blockIds: readonly BlockId[]): void {
    for (const blockId of blockIds) {
      assert(this.holderCount(blockId) > 0, `block ${blockId} is shared but not taken`);
      this.#hold(blockId);
    }
  }

  /** Adds a holder to found blocks, to as many from the first on as leave every reservation whole, and answers with those. */
  borrow(found: readonly BlockId[]): readonly BlockId[] {
    let count = 0;
    for (const blockId of found) {
      if (this.holderCount(blockId) === 0 && this.availableCount === 0) break;
      this.#hold(blockId);
      count++;
    }
    return found.slice(0, count);
  }

  /** One holder less for each, in a sequence's order; the last holder makes the block free again, idle where its KV is kept. */
  free(blockIds: readonly BlockId[]): void {
    for (let index = blockIds.length - 1; index >= 0; index--) {
      const blockId = blockIds[index] as BlockId;
      const count = this.holderCount(blockId);
      assert(count > 0, `block ${blockId} is freed but not taken`);
      this.#holderCounts[blockId] = count - 1;
      if (count > 1) continue;
      this.#freeCount++;
      if (this.#table.has(blockId) && this.#otherOf(blockId) === undefined) this.#idle.push(blockId);
      else this.#makeBlank(blockId);
    }
  }

  /** The block, which is held, has the whole KV of the hash at `offset`, and is not written again. */
  keep(blockId: BlockId, hashes: Uint8Array, offset: number): void {
    assert(this.holderCount(blockId) > 0, `block ${blockId} is kept but not taken`);
    if (this.#table.has(blockId)) return;
    const twin = this.#table.find(hashes, offset);
    if (twin !== undefined && this.#idle.has(twin)) {
      this.#idle.remove(twin);
      this.#makeBlank(twin);
    }
    this.#table.insert(blockId, hashes, offset);
    if (twin === undefined) this.journal.append("stored", this.#table.hashOf(blockId));
  }

  /** Nothing that is there is reused any more; blocks that are held stay with their holders. Answers with how many were kept. */
  clear(): number {
    const { cachedCount } = this;
    for (let blockId = 0; blockId < this.blockCount; blockId++) {
      if (this.#idle.has(blockId)) this.#idle.remove(blockId);
      if (this.#table.has(blockId)) this.#table.remove(blockId);
    }
    this.#lowestBlank = 0;
    this.journal.clear();
    return cachedCount;
  }

  /** The blocks that have the KV of the hashes from number `begin` on, up to the first that nobody has. `hashes`: 16 bytes each. */
  find(hashes: Uint8Array, begin = 0): BlockId[] {
    const found: BlockId[] = [];
    for (let offset = begin * BLOCK_HASH_BYTES; offset < hashes.length; offset += BLOCK_HASH_BYTES) {
      const blockId = this.#table.find(hashes, offset);
      if (blockId === undefined) break;
      found.push(blockId as BlockId);
    }
    return found;
  }

  /** Every hash of the cache once, 16 bytes each; with `journal.next` where the changes after it begin. */
  snapshot(): Uint8Array {
    const hashes: Uint8Array[] = [];
    for (let blockId = 0; blockId < this.blockCount; blockId++) {
      if (!this.#table.has(blockId)) continue;
      const hash = this.#table.hashOf(blockId);
      if (this.#table.find(hash, 0) === blockId) hashes.push(hash);
    }
    const packed = new Uint8Array(hashes.length * BLOCK_HASH_BYTES);
    for (const [index, hash] of hashes.entries()) packed.set(hash, index * BLOCK_HASH_BYTES);
    return packed;
  }

  /** How many hold the block; 0 when it is free. */
  holderCount(blockId: number): number {
    return this.#holderCounts[blockId] ?? 0;
  }

  checkInvariants(): void {
    let free = 0;
    let idle = 0;
    for (let index = 0; index < this.blockCount; index++) {
      const isHeld = this.holderCount(index) > 0;
      const isIdle = this.#idle.has(index);
      if (!isHeld) free++;
      if (isIdle) idle++;
      assert(!isIdle || (!isHeld && this.#table.has(index)), `block ${index} is idle, but held or without a hash`);
      assert(isHeld || isIdle || !this.#table.has(index), `block ${index} has a hash and is in no queue`);
      if (!isIdle) assert(isHeld || index >= this.#lowestBlank, `block ${index} is blank below ${this.#lowestBlank}`);
      else assert(this.#otherOf(index) === undefined, `idle block ${index} has a twin`);
    }
    assert(free === this.#freeCount, `${free} blocks are free, counted ${this.#freeCount}`);
    assert(idle === this.#idle.size, `${idle} blocks are idle, counted ${this.#idle.size}`);
    let reserved = 0;
    for (const count of this.#reservations.values()) reserved += count;
    assert(reserved === this.#reservedCount, `${reserved} blocks are reserved, counted ${this.#reservedCount}`);
    assert(reserved <= free, `${reserved} blocks are reserved but only ${free} are free`);
  }

  #spend(owner: number, count: number): void {
    const remaining = this.#reservations.get(owner);
    assert(
      remaining !== undefined && remaining >= count,
      `owner ${owner} takes ${count} blocks of ${remaining} reserved`,
    );
    this.#reservations.set(owner, remaining - count);
    this.#reservedCount -= count;
  }

  #hold(blockId: BlockId): void {
    const count = this.holderCount(blockId);
    if (count === 0) {
      this.#idle.remove(blockId);
      this.#freeCount--;
    }
    this.#holderCounts[blockId] = count + 1;
  }

  #makeBlank(blockId: number): void {
    if (this.#table.has(blockId)) this.#table.remove(blockId);
    if (blockId < this.#lowestBlank) this.#lowestBlank = blockId;
  }

  /** Another block with the same hash. */
  #otherOf(blockId: number): number | undefined {
    return this.#table.find(this.#table.hashOf(blockId), 0, blockId);
  }

  /** All blank blocks and the first idle ones, in the order of their ids: what was one run is one again. */
  #evict(count: number): BlockId[] {
    const blockIds = this.#findLowest(this.#freeCount - this.#idle.size);
    while (blockIds.length < count) {
      const blockId = this.#idle.shift();
      assert(blockId !== undefined, `only ${blockIds.length} of ${count} reserved blocks are free`);
      this.journal.append("removed", this.#table.hashOf(blockId));
      this.#table.remove(blockId);
      this.#evictedCount++;
      blockIds.push(blockId as BlockId);
    }
    return blockIds.sort((a, b) => a - b);
  }

  #isBlank(index: number): boolean {
    return this.#holderCounts[index] === 0 && !this.#table.has(index);
  }

  #findRun(count: number): BlockId[] | undefined {
    while (this.#lowestBlank < this.blockCount && !this.#isBlank(this.#lowestBlank)) this.#lowestBlank++;
    let begin = this.#lowestBlank;
    for (let index = begin; index < this.blockCount; index++) {
      if (!this.#isBlank(index)) begin = index + 1;
      else if (index - begin + 1 === count)
        return Array.from({ length: count }, (_, offset) => (begin + offset) as BlockId);
    }
    return undefined;
  }

  #findLowest(count: number): BlockId[] {
    const blockIds: BlockId[] = [];
    for (let index = this.#lowestBlank; blockIds.length < count && index < this.blockCount; index++) {
      if (this.#isBlank(index)) blockIds.push(index as BlockId);
    }
    assert(blockIds.length === count, `only ${blockIds.length} of ${count} blank blocks are found`);
    return blockIds;
  }
}
