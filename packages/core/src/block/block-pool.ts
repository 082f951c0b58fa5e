import { assert } from "../assert.ts";

/** A physical block of the sidecar's KV pool: a dense index from 0. */
export type BlockId = number & { readonly __brand: "BlockId" };

/** Every way `reserve` can end. A full pool is an outcome to wait for or to place around, not an error. */
export type ReserveOutcome =
  | { readonly kind: "reserved" }
  | { readonly kind: "full"; readonly missingBlockCount: number };

/**
 * Physical blocks and the promises on them. An owner first reserves a *count*, later takes physical blocks out of its reservation,
 * and in the end frees them. Because a reservation is subtracted from what others may reserve, `take` within one's reservation
 * never fails: `reservedCount <= freeCount` always holds.
 *
 * The lowest free run that fits is taken first, then the lowest single blocks, so that sequences lie in long runs (a run of blocks
 * is one transfer) and two runs of the same history choose the same ids. `take` costs O(blocks scanned) from the lowest free one.
 */
export class BlockPool {
  readonly blockCount: number;
  /** Who holds each block; 0 where it is free. */
  readonly #holderCounts: Uint16Array;
  readonly #reservations = new Map<number, number>();
  #freeCount: number;
  #reservedCount = 0;
  /** No block below this is free. */
  #lowestFree = 0;

  constructor(blockCount: number) {
    assert(
      Number.isSafeInteger(blockCount) && blockCount > 0,
      `block count is ${blockCount}, must be a positive integer`,
    );
    this.blockCount = blockCount;
    this.#holderCounts = new Uint16Array(blockCount);
    this.#freeCount = blockCount;
  }

  /** Blocks that nobody holds, reserved ones among them. */
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

  /** Promises `count` blocks to `owner`, who must have no reservation yet. */
  reserve(owner: number, count: number): ReserveOutcome {
    assert(!this.#reservations.has(owner), `owner ${owner} reserves twice`);
    assert(count >= 0, `owner ${owner} reserves ${count} blocks`);
    const missingBlockCount = count - this.availableCount;
    if (missingBlockCount > 0) return { kind: "full", missingBlockCount };
    this.#reservations.set(owner, count);
    this.#reservedCount += count;
    return { kind: "reserved" };
  }

  /** Turns `count` blocks of the owner's reservation into physical ones. Asking for more than is reserved is a defect. */
  take(owner: number, count: number): BlockId[] {
    const remaining = this.#reservations.get(owner);
    assert(
      remaining !== undefined && remaining >= count,
      `owner ${owner} takes ${count} blocks of ${remaining} reserved`,
    );
    if (count === 0) return [];
    this.#reservations.set(owner, remaining - count);
    this.#reservedCount -= count;
    const blockIds = this.#findRun(count) ?? this.#findLowest(count);
    for (const blockId of blockIds) this.#holderCounts[blockId] = 1;
    this.#freeCount -= count;
    return blockIds;
  }

  /** Gives back what the owner reserved and did not take. Unknown owners are fine. */
  cancelReservation(owner: number): void {
    this.#reservedCount -= this.#reservations.get(owner) ?? 0;
    this.#reservations.delete(owner);
  }

  /** Adds a holder to blocks that are taken; each holder frees them once. Takes nothing out of a reservation. */
  share(blockIds: readonly BlockId[]): void {
    for (const blockId of blockIds) {
      const count = this.holderCount(blockId);
      assert(count > 0, `block ${blockId} is shared but not taken`);
      this.#holderCounts[blockId] = count + 1;
    }
  }

  /** One holder less; the last one makes the block free again. */
  free(blockIds: readonly BlockId[]): void {
    for (const blockId of blockIds) {
      const count = this.holderCount(blockId);
      assert(count > 0, `block ${blockId} is freed but not taken`);
      this.#holderCounts[blockId] = count - 1;
      if (count > 1) continue;
      this.#freeCount++;
      if (blockId < this.#lowestFree) this.#lowestFree = blockId;
    }
  }

  /** How many hold the block; 0 when it is free. */
  holderCount(blockId: number): number {
    return this.#holderCounts[blockId] ?? 0;
  }

  checkInvariants(): void {
    let free = 0;
    for (let index = 0; index < this.blockCount; index++) {
      if (this.#holderCounts[index] === 0) {
        free++;
        assert(index >= this.#lowestFree, `block ${index} is free below the lowest free block ${this.#lowestFree}`);
      }
    }
    assert(free === this.#freeCount, `${free} blocks are free, counted ${this.#freeCount}`);
    let reserved = 0;
    for (const count of this.#reservations.values()) reserved += count;
    assert(reserved === this.#reservedCount, `${reserved} blocks are reserved, counted ${this.#reservedCount}`);
    assert(reserved <= free, `${reserved} blocks are reserved but only ${free} are free`);
  }

  #advanceLowestFree(): void {
    while (this.#lowestFree < this.blockCount && this.#holderCounts[this.#lowestFree] !== 0) this.#lowestFree++;
  }

  #findRun(count: number): BlockId[] | undefined {
    this.#advanceLowestFree();
    let begin = this.#lowestFree;
    for (let index = begin; index < this.blockCount; index++) {
      if (this.#holderCounts[index] !== 0) begin = index + 1;
      else if (index - begin + 1 === count)
        return Array.from({ length: count }, (_, offset) => (begin + offset) as BlockId);
    }
    return undefined;
  }

  #findLowest(count: number): BlockId[] {
    const blockIds: BlockId[] = [];
    for (let index = this.#lowestFree; blockIds.length < count && index < this.blockCount; index++) {
      if (this.#holderCounts[index] === 0) blockIds.push(index as BlockId);
    }
    assert(blockIds.length === count, `only ${blockIds.length} of ${count} reserved blocks are free`);
    return blockIds;
  }
}
