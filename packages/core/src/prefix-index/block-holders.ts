import { assert } from "../assert.ts";
import { type BlockRecords, RECORD_WORDS } from "./block-records.ts";
import { EntryTable } from "./entry-table.ts";
import { HolderCodes } from "./holder-codes.ts";
import { MEDIUM_COUNT } from "./media.ts";

/** Words of a record that are kept here. */
const HEAD = 4;
const FINGERPRINT_A = 5;
const FINGERPRINT_B = 6;
const COUNT = 7;
const WIDE = 0x8000_0000;

/** Words of an entry: one holder of one block. */
const ENTRY_WORDS = 6;
const BLOCK = 0;
const HOLDER = 1;
/** Copies on each medium, eight bits each. */
const COPIES = 2;
/** Next entry of the block; entry + 1, 0 at the end. Unused while the block is wide. */
const NEXT_OF_BLOCK = 3;
const NEXT_OF_HOLDER = 4;
const PREVIOUS_OF_HOLDER = 5;

const COPIES_MAX = 255;

/**
 * Who holds a block, and how many copies on which medium. A block with few holders has a list of entries. One with many is *wide*: its entries
 * are found through a table, and it has a bit set of holders for each medium rank, in which bit h of plane m says that holder h has the block
 * on a medium of rank m or faster. Each holder's entries are a list of their own, so that a holder is removed in the time of its own blocks.
 */
export class BlockHolders {
  /** Words of one plane of a bit set. */
  readonly planeWords: number;
  readonly #records: BlockRecords;
  readonly #wideAbove: number;
  readonly #entries: Uint32Array;
  readonly #entryCapacity: number;
  readonly #entryTable: EntryTable;
  readonly #codes: HolderCodes;
  /** entry + 1 of a holder's first entry. */
  readonly #firstOfHolder: Uint32Array;
  readonly #entryCountOfHolder: Uint32Array;
  readonly #planes: Uint32Array;
  readonly #freePlanes: number[] = [];
  /** Of a wide block: holders that have it on no medium of rank 0. */
  readonly #slowCounts: Uint32Array;
  #freshEntry = 0;
  #freshPlanes = 0;
  /** entry + 1 of the first free one. */
  #firstFree = 0;
  #entryCount = 0;

  constructor(records: BlockRecords, entryCapacity: number, holderCapacity: number, wideAbove: number) {
    assert(holderCapacity % 32 === 0, `room for ${holderCapacity} holders; use a multiple of 32`);
    this.#records = records;
    this.#wideAbove = wideAbove;
    this.#entryCapacity = entryCapacity;
    this.#entries = new Uint32Array(entryCapacity * ENTRY_WORDS);
    const layout = { words: this.#entries, stride: ENTRY_WORDS, block: BLOCK, holder: HOLDER };
    this.#entryTable = new EntryTable(entryCapacity, layout);
    this.#codes = new HolderCodes(holderCapacity);
    this.#firstOfHolder = new Uint32Array(holderCapacity);
    this.#entryCountOfHolder = new Uint32Array(holderCapacity);
    this.planeWords = holderCapacity / 32;
    const wideMax = Math.ceil(entryCapacity / (wideAbove + 1));
    this.#planes = new Uint32Array(wideMax * this.planeWords * MEDIUM_COUNT);
    this.#slowCounts = new Uint32Array(wideMax);
  }

  get entryCount(): number {
    return this.#entryCount;
  }

  isFull(): boolean {
    return this.#entryCount === this.#entryCapacity;
  }

  /** Blocks of a holder. */
  countOf(holder: number): number {
    return this.#entryCountOfHolder[holder]!;
  }

  /** One more copy of a block. False when there is no room for it. */
  add(block: number, holder: number, rank: number): boolean {
    const found = this.#find(block, holder);
    if (found !== -1) {
      const o = found * ENTRY_WORDS + COPIES;
      const copies = this.#entries[o]!;
      // More copies than can be counted: the last ones are then forgotten early, which costs a recomputation.
      if (((copies >>> (8 * rank)) & COPIES_MAX) === COPIES_MAX) return true;
      this.#setCopies(block, holder, found, copies, copies + 2 ** (8 * rank));
      return true;
    }
    const entry = this.#takeEntry();
    if (entry === -1) return false;
    const o = entry * ENTRY_WORDS;
    const entries = this.#entries;
    entries[o + BLOCK] = block;
    entries[o + HOLDER] = holder;
    entries[o + COPIES] = 0;
    const first = this.#firstOfHolder[holder]!;
    entries[o + NEXT_OF_HOLDER] = first;
    entries[o + PREVIOUS_OF_HOLDER] = 0;
    if (first !== 0) entries[(first - 1) * ENTRY_WORDS + PREVIOUS_OF_HOLDER] = entry + 1;
    this.#firstOfHolder[holder] = entry + 1;
    this.#entryCountOfHolder[holder] = this.#entryCountOfHolder[holder]! + 1;
    this.#join(block, entry);
    this.#setCopies(block, holder, entry, 0, 2 ** (8 * rank));
    return true;
  }

  /** One copy less. True when the block has no holder left, and its record may go. */
  remove(block: number, holder: number, rank: number): boolean {
    const entry = this.#find(block, holder);
    if (entry === -1) return false;
    const copies = this.#entries[entry * ENTRY_WORDS + COPIES]!;
    if (((copies >>> (8 * rank)) & COPIES_MAX) === 0) return false;
    this.#setCopies(block, holder, entry, copies, copies - 2 ** (8 * rank));
    return this.#dropIfEmpty(block, holder, entry);
  }

  /** All copies of one holder. As `remove`. */
  removeEntry(entry: number): boolean {
    const o = entry * ENTRY_WORDS;
    const block = this.#entries[o + BLOCK]!;
    const holder = this.#entries[o + HOLDER]!;
    this.#setCopies(block, holder, entry, this.#entries[o + COPIES]!, 0);
    return this.#dropIfEmpty(block, holder, entry);
  }

  /** A holder's first entry, -1 when it has none. */
  firstOf(holder: number): number {
    return this.#firstOfHolder[holder]! - 1;
  }

  #nextOf(entry: number): number {
    return this.#entries[entry * ENTRY_WORDS + NEXT_OF_HOLDER]! - 1;
  }

  blockOf(entry: number): number {
    return this.#entries[entry * ENTRY_WORDS + BLOCK]!;
  }

  /** Copies on each medium, eight bits each; 0 when the holder has none. */
  copiesOf(block: number, holder: number): number {
    const entry = this.#find(block, holder);
    return entry === -1 ? 0 : this.#entries[entry * ENTRY_WORDS + COPIES]!;
  }

  /** Where in `planes()` the bit sets of a block start. -1 while it is not wide. */
  planesOf(block: number): number {
    const r = block * RECORD_WORDS;
    const { words } = this.#records;
    return (words[r + COUNT]! & WIDE) === 0 ? -1 : (words[r + HEAD]! - 1) * this.planeWords * MEDIUM_COUNT;
  }

  planes(): Uint32Array {
    return this.#planes;
  }

  /** Whether the bit sets of a wide block are the same at every rank. */
  isWideUniform(block: number): boolean {
    return this.#slowCounts[this.#records.words[block * RECORD_WORDS + HEAD]! - 1] === 0;
  }

  /** Sets the bits of a block that is not wide in `target`, of the form of its bit sets. Answers with the holders that have it on no medium of rank 0. */
  setBits(block: number, target: Uint32Array): number {
    const { words } = this.#records;
    let slowCount = 0;
    for (let at = words[block * RECORD_WORDS + HEAD]!; at !== 0; ) {
      const o = (at - 1) * ENTRY_WORDS;
      const holder = this.#entries[o + HOLDER]!;
      const bit = 1 << (holder & 31);
      const rank = fastest(this.#entries[o + COPIES]!);
      if (isSlow(rank)) slowCount++;
      for (let plane = rank; plane < MEDIUM_COUNT; plane++) {
        const index = plane * this.planeWords + (holder >>> 5);
        target[index] = target[index]! | bit;
      }
      at = this.#entries[o + NEXT_OF_BLOCK]!;
    }
    return slowCount;
  }

  #find(block: number, holder: number): number {
    const { words } = this.#records;
    const r = block * RECORD_WORDS;
    if ((words[r + COUNT]! & WIDE) !== 0) return this.#entryTable.find(block, holder);
    const entries = this.#entries;
    let at = words[r + HEAD]!;
    while (at !== 0 && entries[(at - 1) * ENTRY_WORDS + HOLDER] !== holder) {
      at = entries[(at - 1) * ENTRY_WORDS + NEXT_OF_BLOCK]!;
    }
    return at - 1;
  }

  #setCopies(block: number, holder: number, entry: number, before: number, after: number): void {
    this.#entries[entry * ENTRY_WORDS + COPIES] = after;
    const from = fastest(before);
    const to = fastest(after);
    if (from === to) return;
    const { words } = this.#records;
    const r = block * RECORD_WORDS;
    if (from < MEDIUM_COUNT) this.#addCode(r, holder * MEDIUM_COUNT + from, -1);
    if (to < MEDIUM_COUNT) this.#addCode(r, holder * MEDIUM_COUNT + to, 1);
    if ((words[r + COUNT]! & WIDE) !== 0) this.#setWideBits(block, holder, from, to);
  }

  #addCode(r: number, code: number, sign: 1 | -1): void {
    const { words } = this.#records;
    words[r + FINGERPRINT_A] = words[r + FINGERPRINT_A]! + sign * this.#codes.a[code]!;
    words[r + FINGERPRINT_B] = words[r + FINGERPRINT_B]! + sign * this.#codes.b[code]!;
  }

  #setWideBits(block: number, holder: number, from: number, to: number): void {
    const base = this.planesOf(block) + (holder >>> 5);
    const bit = 1 << (holder & 31);
    const slowChange = Number(isSlow(to)) - Number(isSlow(from));
    if (slowChange !== 0) {
      const number = this.#records.words[block * RECORD_WORDS + HEAD]! - 1;
      this.#slowCounts[number] = this.#slowCounts[number]! + slowChange;
    }
    for (let plane = Math.min(from, to); plane < Math.max(from, to); plane++) {
      const index = base + plane * this.planeWords;
      this.#planes[index] = to < from ? this.#planes[index]! | bit : this.#planes[index]! & ~bit;
    }
  }

  #dropIfEmpty(block: number, holder: number, entry: number): boolean {
    const o = entry * ENTRY_WORDS;
    const entries = this.#entries;
    if (entries[o + COPIES] !== 0) return false;
    const next = entries[o + NEXT_OF_HOLDER]!;
    const previous = entries[o + PREVIOUS_OF_HOLDER]!;
    if (previous === 0) this.#firstOfHolder[holder] = next;
    else entries[(previous - 1) * ENTRY_WORDS + NEXT_OF_HOLDER] = next;
    if (next !== 0) entries[(next - 1) * ENTRY_WORDS + PREVIOUS_OF_HOLDER] = previous;
    this.#entryCountOfHolder[holder] = this.#entryCountOfHolder[holder]! - 1;
    this.#leave(block, entry);
    entries[o + NEXT_OF_BLOCK] = this.#firstFree;
    this.#firstFree = entry + 1;
    this.#entryCount--;
    return this.#records.words[block * RECORD_WORDS + COUNT] === 0;
  }

  #join(block: number, entry: number): void {
    const { words } = this.#records;
    const r = block * RECORD_WORDS;
    const count = words[r + COUNT]! + 1;
    words[r + COUNT] = count;
    if ((count & WIDE) !== 0) {
      this.#entryTable.insert(entry);
      return;
    }
    this.#entries[entry * ENTRY_WORDS + NEXT_OF_BLOCK] = words[r + HEAD]!;
    words[r + HEAD] = entry + 1;
    if (count > this.#wideAbove) this.#widen(block);
  }

  #leave(block: number, entry: number): void {
    const { words } = this.#records;
    const r = block * RECORD_WORDS;
    const count = words[r + COUNT]! - 1;
    words[r + COUNT] = count;
    const entries = this.#entries;
    if ((count & WIDE) !== 0) {
      this.#entryTable.delete(entry);
      // Half the threshold, so that one holder that comes and goes does not turn the block over and over.
      if ((count & ~WIDE) <= this.#wideAbove >>> 1) this.#narrow(block);
      return;
    }
    const next = entries[entry * ENTRY_WORDS + NEXT_OF_BLOCK]!;
    let at = words[r + HEAD]!;
    if (at === entry + 1) {
      words[r + HEAD] = next;
      return;
    }
    for (; entries[(at - 1) * ENTRY_WORDS + NEXT_OF_BLOCK] !== entry + 1; ) {
      at = entries[(at - 1) * ENTRY_WORDS + NEXT_OF_BLOCK]!;
    }
    entries[(at - 1) * ENTRY_WORDS + NEXT_OF_BLOCK] = next;
  }

  #widen(block: number): void {
    const { words } = this.#records;
    const r = block * RECORD_WORDS;
    const size = this.planeWords * MEDIUM_COUNT;
    const planes = this.#freePlanes.pop() ?? this.#freshPlanes++;
    const base = planes * size;
    this.#planes.fill(0, base, base + size);
    this.#slowCounts[planes] = this.setBits(block, this.#planes.subarray(base, base + size));
    for (let at = words[r + HEAD]!; at !== 0; at = this.#entries[(at - 1) * ENTRY_WORDS + NEXT_OF_BLOCK]!) {
      this.#entryTable.insert(at - 1);
    }
    words[r + HEAD] = planes + 1;
    words[r + COUNT] = (words[r + COUNT]! | WIDE) >>> 0;
  }

  #narrow(block: number): void {
    const { words } = this.#records;
    const r = block * RECORD_WORDS;
    const lastPlane = this.planesOf(block) + (MEDIUM_COUNT - 1) * this.planeWords;
    let head = 0;
    for (let index = 0; index < this.planeWords; index++) {
      for (let bits = this.#planes[lastPlane + index]!; bits !== 0; bits &= bits - 1) {
        const entry = this.#entryTable.find(block, index * 32 + 31 - Math.clz32(bits & -bits));
        this.#entryTable.delete(entry);
        this.#entries[entry * ENTRY_WORDS + NEXT_OF_BLOCK] = head;
        head = entry + 1;
      }
    }
    this.#freePlanes.push(words[r + HEAD]! - 1);
    words[r + HEAD] = head;
    words[r + COUNT] = words[r + COUNT]! & ~WIDE;
  }

  #takeEntry(): number {
    if (this.#firstFree !== 0) {
      const entry = this.#firstFree - 1;
      this.#firstFree = this.#entries[entry * ENTRY_WORDS + NEXT_OF_BLOCK]!;
      this.#entryCount++;
      return entry;
    }
    if (this.#freshEntry === this.#entryCapacity) return -1;
    this.#entryCount++;
    return this.#freshEntry++;
  }

  checkInvariants(): void {
    let total = 0;
    for (let holder = 0; holder < this.#firstOfHolder.length; holder++) {
      let count = 0;
      for (let entry = this.firstOf(holder); entry !== -1; entry = this.#nextOf(entry)) {
        const block = this.blockOf(entry);
        assert(this.#find(block, holder) === entry, `entry ${entry} of holder ${holder} is lost to its block ${block}`);
        assert(this.#entries[entry * ENTRY_WORDS + COPIES] !== 0, `entry ${entry} has no copy`);
        count++;
      }
      assert(count === this.countOf(holder), `holder ${holder} counts ${this.countOf(holder)} blocks and has ${count}`);
      total += count;
    }
    assert(total === this.#entryCount, `${this.#entryCount} entries are counted and ${total} are there`);
  }
}

/** Of ranks; `MEDIUM_COUNT`, no copy, is none. */
function isSlow(rank: number): boolean {
  return rank > 0 && rank < MEDIUM_COUNT;
}

/** Rank of the fastest medium with a copy; `MEDIUM_COUNT` when there is none. */
function fastest(copies: number): number {
  return copies === 0 ? MEDIUM_COUNT : (31 - Math.clz32(copies & -copies)) >>> 3;
}
