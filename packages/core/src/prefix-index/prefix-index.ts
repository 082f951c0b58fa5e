import { assert } from "../assert.ts";
import { unreachable } from "../kvasir-error.ts";
import { BLOCK_HASH_BYTES } from "../prefix/block-hash.ts";
import { BlockHolders } from "./block-holders.ts";
import { ABSENT, BlockRecords, hashWords, RECORD_WORDS } from "./block-records.ts";
import type { HolderEvent, HolderEventOutcome } from "./holder-event.ts";
import { HolderNumbers, type HolderStream, judge } from "./holder-streams.ts";
import { MEDIUM_COUNT, type Medium, mediumRank } from "./media.ts";
import { PrefixMatches } from "./prefix-matches.ts";

const FINGERPRINT_A = 5;
const FINGERPRINT_B = 6;

export interface PrefixIndexOptions {
  /**
   * Blocks, counted once per holder, that the index has room for; what is stored beyond is ignored. Memory is used as blocks come: about 65
   * bytes for a block of one holder. Larger: more addresses reserved; smaller: hits are missed.
   */
  readonly blockCapacity: number;
  /** Holders, counting those whose blocks are still swept. A multiple of 32. Larger: popular blocks take more memory, one bit per holder and medium. */
  readonly holderCapacity: number;
  /** Holders of a block above which it gets bit sets. Larger: slower look-ups of popular blocks; smaller: more memory. Default 16. */
  readonly wideAbove?: number;
}

export const PREFIX_INDEX_DEFAULTS: PrefixIndexOptions = { blockCapacity: 10_000_000, holderCapacity: 2_048 };

/**
 * Which holder (a worker or a store) has which KV blocks on which medium, and how much of a prompt each of them has. A hint: the holders own
 * the truth and check what they are asked for; the index lags by the events on their way, and a wrong answer costs a slower choice.
 *
 * A look-up walks the prompt's blocks once. It keeps the set of holders that have all blocks so far, and touches it only where the set of the
 * next block differs from the one before, which fingerprints tell: so its time is that of the blocks and of the changes, whatever the number
 * of holders. Aim and peer: the radix tree of Dynamo's KV router; here the chain in the hashes makes the tree, and its edges, unnecessary.
 */
export class PrefixIndex {
  readonly holderCapacity: number;
  readonly #records: BlockRecords;
  readonly #holders: BlockHolders;
  readonly #numbers: HolderNumbers;
  readonly #streams = new Map<string, HolderStream>();
  /** Streams by the number that look-ups see; the numbers of others are invisible. */
  readonly #streamOf: (HolderStream | undefined)[] = [];
  readonly #visible: Uint32Array;
  /** Bit sets of a look-up: the holders that have all blocks so far, and those of the block at hand. */
  readonly #alive: Uint32Array;
  /** Places of `alive` that are not zero: a look-up ends some of them with nearly every block, and never begins one. */
  readonly #active: Uint32Array;
  #activeCount = 0;
  /** Every block so far is on the fastest medium wherever it is: the set of the first rank stands for all. */
  #isUniform = true;
  readonly #scratch: Uint32Array;
  #ignoredBlockCount = 0;

  constructor(options: PrefixIndexOptions) {
    const { blockCapacity, holderCapacity, wideAbove = 16 } = options;
    this.holderCapacity = holderCapacity;
    this.#records = new BlockRecords(blockCapacity);
    this.#holders = new BlockHolders(this.#records, blockCapacity, holderCapacity, wideAbove);
    this.#numbers = new HolderNumbers(holderCapacity);
    this.#visible = new Uint32Array(this.#holders.planeWords);
    this.#alive = new Uint32Array(this.#holders.planeWords * MEDIUM_COUNT);
    this.#active = new Uint32Array(this.#alive.length);
    this.#scratch = new Uint32Array(this.#holders.planeWords * MEDIUM_COUNT);
  }

  /** Distinct blocks. */
  get blockCount(): number {
    return this.#records.size;
  }

  /** Blocks, counted once per holder, those not yet swept included. */
  get heldBlockCount(): number {
    return this.#holders.entryCount;
  }

  /** Blocks that were stored and found no room, ever. */
  get ignoredBlockCount(): number {
    return this.#ignoredBlockCount;
  }

  get holderCount(): number {
    return this.#streams.size;
  }

  /** The number of a holder in matches. It changes with each epoch, clearing and snapshot; undefined while nothing is known of the holder. */
  holderNumber(holderId: string): number | undefined {
    return this.#streams.get(holderId)?.holder;
  }

  /** The holder that a number of a match made just now stands for. */
  holderId(holder: number): string {
    const stream = this.#streamOf[holder];
    assert(stream !== undefined, `no holder has the number ${holder}`);
    return stream.holderId;
  }

  /** Blocks known of a holder. */
  blockCountOf(holderId: string): number {
    const stream = this.#streams.get(holderId);
    return stream === undefined ? 0 : this.#holders.countOf(stream.holder);
  }

  apply(holderId: string, event: HolderEvent): HolderEventOutcome {
    const stream = this.#streamFor(holderId, event.epoch);
    if (stream === undefined) return { kind: "too_many_holders", holderMax: this.holderCapacity };
    const verdict = judge(stream, event);
    switch (verdict) {
      case "stale_epoch":
        return { kind: "stale_epoch", epoch: stream.epoch };
      case "repeated":
        return { kind: "repeated" };
      case "gap": {
        const isNew = !stream.needsSnapshot;
        stream.needsSnapshot = true;
        return { kind: "needs_snapshot", expectedSequence: stream.sequence + 1, isNew };
      }
      case "take":
        return this.#take(stream, event);
      default:
        return unreachable(verdict);
    }
  }

  /** The holder is gone: no look-up sees it any more, and `sweep` frees what is left of it. False when it was not known. */
  removeHolder(holderId: string): boolean {
    const stream = this.#streams.get(holderId);
    if (stream === undefined) return false;
    this.#dropSnapshot(stream);
    this.#hide(stream.holder);
    this.#streams.delete(holderId);
    return true;
  }

  /** Frees up to so many blocks of holders that are gone. True while some are left: call it between other work. */
  sweep(blockCountMax: number): boolean {
    let left = blockCountMax;
    for (let holder = this.#numbers.firstRetired(); holder !== undefined; holder = this.#numbers.firstRetired()) {
      for (let entry = this.#holders.firstOf(holder); entry !== -1; entry = this.#holders.firstOf(holder)) {
        if (left-- === 0) return true;
        const block = this.#holders.blockOf(entry);
        if (this.#holders.removeEntry(entry)) this.#records.delete(block);
      }
      this.#numbers.release();
    }
    return false;
  }

  /** How much of a prompt each holder has. `hashes`: those of its blocks in order, packed. */
  match(hashes: Uint8Array, into: PrefixMatches = new PrefixMatches(this.holderCapacity)): PrefixMatches {
    into.clear();
    const words = hashWords(hashes);
    const count = hashes.length / BLOCK_HASH_BYTES;
    const records = this.#records;
    const facts = records.words;
    let block = ABSENT;
    let fingerprintA = 0;
    let fingerprintB = 0;
    let isEmpty = true;
    let index = 0;
    for (; index < count; index++) {
      block = records.find(words, index, block + 1);
      if (block === ABSENT) break;
      const r = block * RECORD_WORDS;
      const a = facts[r + FINGERPRINT_A]!;
      const b = facts[r + FINGERPRINT_B]!;
      if (index > 0 && a === fingerprintA && b === fingerprintB) continue;
      fingerprintA = a;
      fingerprintB = b;
      isEmpty = index === 0 ? this.#begin(block) : this.#intersect(block, index, into);
      if (isEmpty) break;
    }
    if (!isEmpty) this.#endAll(index, into);
    return into;
  }

  /** Sets `alive` to the visible holders of the first block. True when there is none. */
  #begin(block: number): boolean {
    const alive = this.#alive;
    const base = this.#holders.planesOf(block);
    if (base !== -1) {
      const planes = this.#holders.planes();
      for (let index = 0; index < alive.length; index++) alive[index] = planes[base + index]!;
      this.#isUniform = this.#holders.isWideUniform(block);
    } else this.#isUniform = this.#holders.setBits(block, alive.fill(0)) === 0;
    const { planeWords } = this.#holders;
    for (let index = 0; index < alive.length; index++) alive[index]! &= this.#visible[index % planeWords]!;
    this.#findActive(this.#isUniform ? planeWords : alive.length);
    return this.#activeCount === 0;
  }

  #findActive(end: number): void {
    this.#activeCount = 0;
    for (let index = 0; index < end; index++) {
      if (this.#alive[index] !== 0) this.#active[this.#activeCount++] = index;
    }
  }

  /** Ends the runs of those that do not have a block. True when none is left. */
  #intersect(block: number, blockIndex: number, into: PrefixMatches): boolean {
    const alive = this.#alive;
    let bits = this.#holders.planes();
    let base = this.#holders.planesOf(block);
    let isUniform: boolean;
    if (base === -1) {
      bits = this.#scratch.fill(0);
      base = 0;
      isUniform = this.#holders.setBits(block, bits) === 0;
    } else isUniform = this.#holders.isWideUniform(block);
    if (this.#isUniform && !isUniform) this.#spread();
    const active = this.#active;
    let left = 0;
    for (let at = 0; at < this.#activeCount; at++) {
      const index = active[at]!;
      const before = alive[index]!;
      const after = (before & bits[base + index]!) >>> 0;
      if (after !== 0) active[left++] = index;
      if (after === before) continue;
      alive[index] = after;
      this.#endBits(before & ~after, index, blockIndex, into);
    }
    this.#activeCount = left;
    return left === 0;
  }

  /** From now on each rank has a set of its own. */
  #spread(): void {
    const { planeWords } = this.#holders;
    for (let rank = 1; rank < MEDIUM_COUNT; rank++) this.#alive.copyWithin(rank * planeWords, 0, planeWords);
    this.#isUniform = false;
    this.#findActive(this.#alive.length);
  }

  #endAll(blockCount: number, into: PrefixMatches): void {
    for (let at = 0; at < this.#activeCount; at++) {
      const index = this.#active[at]!;
      this.#endBits(this.#alive[index]!, index, blockCount, into);
    }
  }

  #endBits(ended: number, index: number, blockCount: number, into: PrefixMatches): void {
    const { planeWords } = this.#holders;
    const rank = Math.floor(index / planeWords);
    const first = (index % planeWords) * 32;
    for (let bits = ended; bits !== 0; bits &= bits - 1) {
      const holder = first + 31 - Math.clz32(bits & -bits);
      if (this.#isUniform) into.endAll(holder, blockCount);
      else into.end(holder, rank, blockCount);
    }
  }

  #take(stream: HolderStream, event: HolderEvent): HolderEventOutcome {
    let ignoredBlockCount = 0;
    switch (event.kind) {
      case "BlocksStored":
        ignoredBlockCount = this.#store(stream.holder, event.medium, event.hashes);
        break;
      case "BlocksRemoved":
        this.#remove(stream.holder, event.medium, event.hashes);
        break;
      case "BlocksCleared": {
        const holder = this.#numbers.take();
        if (holder === undefined) return this.#clearNow(stream, event.sequence);
        this.#show(stream, holder);
        break;
      }
      case "SnapshotPart": {
        if (event.part === 0) {
          this.#dropSnapshot(stream);
          const holder = this.#numbers.take();
          if (holder === undefined) return { kind: "too_many_holders", holderMax: this.holderCapacity };
          stream.snapshot = { holder, sequence: event.sequence, nextPart: 0 };
        }
        const { snapshot } = stream;
        assert(snapshot !== undefined, "a part was taken and no snapshot begun");
        snapshot.nextPart++;
        ignoredBlockCount = this.#store(snapshot.holder, event.medium, event.hashes);
        if (!event.isLast) return { kind: "applied", ignoredBlockCount };
        stream.snapshot = undefined;
        stream.needsSnapshot = false;
        this.#show(stream, snapshot.holder);
        break;
      }
      default:
        return unreachable(event);
    }
    stream.sequence = event.sequence;
    return { kind: "applied", ignoredBlockCount };
  }

  #store(holder: number, medium: Medium, hashes: Uint8Array): number {
    const words = hashWords(hashes);
    const rank = mediumRank(medium);
    const count = hashes.length / BLOCK_HASH_BYTES;
    let ignored = 0;
    let previous = ABSENT;
    for (let index = 0; index < count; index++) {
      let block = this.#records.find(words, index, previous + 1);
      // There is never a record without an entry.
      if (block === ABSENT && !this.#holders.isFull()) block = this.#records.insert(words, index);
      if (block === ABSENT || !this.#holders.add(block, holder, rank)) ignored++;
      previous = block;
    }
    this.#ignoredBlockCount += ignored;
    return ignored;
  }

  #remove(holder: number, medium: Medium, hashes: Uint8Array): void {
    const words = hashWords(hashes);
    const rank = mediumRank(medium);
    const count = hashes.length / BLOCK_HASH_BYTES;
    let previous = ABSENT;
    for (let index = 0; index < count; index++) {
      const block = this.#records.find(words, index, previous + 1);
      if (block !== ABSENT && this.#holders.remove(block, holder, rank)) this.#records.delete(block);
      previous = block;
    }
  }

  /** Without a number to spare a cleared holder is swept at once. */
  #clearNow(stream: HolderStream, sequence: number): HolderEventOutcome {
    const { holder } = stream;
    for (let entry = this.#holders.firstOf(holder); entry !== -1; entry = this.#holders.firstOf(holder)) {
      const block = this.#holders.blockOf(entry);
      if (this.#holders.removeEntry(entry)) this.#records.delete(block);
    }
    stream.sequence = sequence;
    return { kind: "applied", ignoredBlockCount: 0 };
  }

  #streamFor(holderId: string, epoch: number): HolderStream | undefined {
    const known = this.#streams.get(holderId);
    if (known !== undefined && epoch <= known.epoch) return known;
    const holder = this.#numbers.take();
    if (holder === undefined) return undefined;
    if (known !== undefined) this.removeHolder(holderId);
    const stream: HolderStream = { holderId, epoch, sequence: 0, holder, needsSnapshot: false, snapshot: undefined };
    this.#streams.set(holderId, stream);
    this.#streamOf[holder] = stream;
    this.#setVisible(holder, true);
    return stream;
  }

  /** From now on a stream's blocks are those of another number. */
  #show(stream: HolderStream, holder: number): void {
    this.#hide(stream.holder);
    stream.holder = holder;
    this.#streamOf[holder] = stream;
    this.#setVisible(holder, true);
  }

  #hide(holder: number): void {
    this.#streamOf[holder] = undefined;
    this.#setVisible(holder, false);
    this.#numbers.retire(holder);
  }

  #dropSnapshot(stream: HolderStream): void {
    if (stream.snapshot !== undefined) this.#numbers.retire(stream.snapshot.holder);
    stream.snapshot = undefined;
  }

  #setVisible(holder: number, isVisible: boolean): void {
    const bit = 1 << (holder & 31);
    const word = this.#visible[holder >>> 5]!;
    this.#visible[holder >>> 5] = isVisible ? word | bit : word & ~bit;
  }

  checkInvariants(): void {
    this.#records.checkInvariants();
    this.#holders.checkInvariants();
    for (const stream of this.#streams.values()) {
      assert(this.#streamOf[stream.holder] === stream, `holder ${stream.holderId} is not found by its number`);
    }
  }
}
