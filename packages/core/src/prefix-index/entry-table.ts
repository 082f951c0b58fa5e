import { assert } from "../assert.ts";

/** Where an entry's block and holder stand in the words of the entries. */
export interface EntryLayout {
  readonly words: Uint32Array;
  readonly stride: number;
  readonly block: number;
  readonly holder: number;
}

/** (block, holder) → entry, for blocks with too many holders to search a list. Open addressing, linear probing; slots are entry + 1. */
export class EntryTable {
  readonly #slots: Uint32Array;
  readonly #mask: number;
  readonly #layout: EntryLayout;
  #size = 0;

  constructor(capacity: number, layout: EntryLayout) {
    const slotCount = 2 ** Math.ceil(Math.log2(capacity * 1.5));
    this.#slots = new Uint32Array(slotCount);
    this.#mask = slotCount - 1;
    this.#layout = layout;
  }

  get size(): number {
    return this.#size;
  }

  /** -1 when absent. */
  find(block: number, holder: number): number {
    const { words, stride, block: blockAt, holder: holderAt } = this.#layout;
    for (let slot = this.#home(block, holder); ; slot = (slot + 1) & this.#mask) {
      const entry = this.#slots[slot]! - 1;
      if (entry === -1) return -1;
      const o = entry * stride;
      if (words[o + blockAt] === block && words[o + holderAt] === holder) return entry;
    }
  }

  insert(entry: number): void {
    let slot = this.#homeOf(entry);
    while (this.#slots[slot] !== 0) slot = (slot + 1) & this.#mask;
    this.#slots[slot] = entry + 1;
    this.#size++;
  }

  delete(entry: number): void {
    let hole = this.#homeOf(entry);
    while (this.#slots[hole] !== entry + 1) {
      assert(this.#slots[hole] !== 0, `entry ${entry} is not in the table`);
      hole = (hole + 1) & this.#mask;
    }
    for (let next = (hole + 1) & this.#mask; this.#slots[next] !== 0; next = (next + 1) & this.#mask) {
      const home = this.#homeOf(this.#slots[next]! - 1);
      if (((next - home) & this.#mask) < ((next - hole) & this.#mask)) continue;
      this.#slots[hole] = this.#slots[next]!;
      hole = next;
    }
    this.#slots[hole] = 0;
    this.#size--;
  }

  #homeOf(entry: number): number {
    const { words, stride, block, holder } = this.#layout;
    return this.#home(words[entry * stride + block]!, words[entry * stride + holder]!);
  }

  #home(block: number, holder: number): number {
    let hash = Math.imul(block, 0x9e3779b1) ^ Math.imul(holder + 1, 0x85ebca77);
    hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
    return (hash ^ (hash >>> 16)) & this.#mask;
  }
}
