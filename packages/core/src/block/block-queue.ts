import { assert } from "../assert.ts";

const NONE = -1;
const APART = -2;

/** Blocks in the order in which they came, each at most once; taking one out of the middle costs as little as taking the first. */
export class BlockQueue {
  readonly #before: Int32Array;
  readonly #after: Int32Array;
  #first = NONE;
  #last = NONE;
  #size = 0;

  constructor(blockCount: number) {
    this.#before = new Int32Array(blockCount).fill(APART);
    this.#after = new Int32Array(blockCount).fill(APART);
  }

  get size(): number {
    return this.#size;
  }

  has(blockId: number): boolean {
    return this.#before[blockId] !== APART;
  }

  push(blockId: number): void {
    assert(!this.has(blockId), `block ${blockId} is queued twice`);
    this.#before[blockId] = this.#last;
    this.#after[blockId] = NONE;
    if (this.#last === NONE) this.#first = blockId;
    else this.#after[this.#last] = blockId;
    this.#last = blockId;
    this.#size++;
  }

  remove(blockId: number): void {
    const before = this.#before[blockId] ?? APART;
    const after = this.#after[blockId] ?? APART;
    assert(before !== APART, `block ${blockId} is not queued`);
    if (before === NONE) this.#first = after;
    else this.#after[before] = after;
    if (after === NONE) this.#last = before;
    else this.#before[after] = before;
    this.#before[blockId] = APART;
    this.#after[blockId] = APART;
    this.#size--;
  }

  /** Takes the first out; undefined of nothing. */
  shift(): number | undefined {
    if (this.#first === NONE) return undefined;
    const blockId = this.#first;
    this.remove(blockId);
    return blockId;
  }

  *[Symbol.iterator](): IterableIterator<number> {
    for (let blockId = this.#first; blockId !== NONE; blockId = this.#after[blockId] ?? NONE) yield blockId;
  }
}
