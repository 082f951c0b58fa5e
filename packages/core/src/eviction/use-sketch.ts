import { assert } from "../assert.ts";

const ROW_COUNT = 4;
const COUNT_MAX = 255;
/** Uses, in widths of the sketch, after which all counts are halved. Larger: longer memory; smaller: what was popular once goes sooner. */
const PERIOD_IN_WIDTHS = 8;

/**
 * How often keys were used lately, those that are not held among them: a count-min sketch with conservative update (Cormode and
 * Muthukrishnan, J. Algorithms 2005; Estan and Varghese, SIGCOMM 2002) that is halved now and then (TinyLFU: Einziger, Friedman and Manes,
 * ACM ToS 2017). Four bytes for each key that it is made for; it never counts too few since the last halving.
 */
export class UseSketch {
  readonly #rows: readonly Uint8Array[];
  readonly #mask: number;
  readonly #period: number;
  #uses = 0;

  /** `keyCount`: distinct keys in a period up to which counts are nearly always right. */
  constructor(keyCount: number) {
    assert(keyCount > 0, `a sketch for ${keyCount} keys`);
    const width = 2 ** Math.max(8, Math.ceil(Math.log2(keyCount)));
    this.#rows = Array.from({ length: ROW_COUNT }, () => new Uint8Array(width));
    this.#mask = width - 1;
    this.#period = PERIOD_IN_WIDTHS * width;
  }

  /** Uses of a key, 0 to 255. */
  count(keyBits: number): number {
    let least = COUNT_MAX;
    for (let row = 0; row < ROW_COUNT; row++) least = Math.min(least, this.#rows[row]?.[this.#cell(keyBits, row)] ?? 0);
    return least;
  }

  /** Counts one use; returns how many there are now. */
  add(keyBits: number): number {
    const count = Math.min(COUNT_MAX, this.count(keyBits) + 1);
    for (let row = 0; row < ROW_COUNT; row++) {
      const cells = this.#rows[row] as Uint8Array;
      const cell = this.#cell(keyBits, row);
      if ((cells[cell] ?? 0) < count) cells[cell] = count;
    }
    if (++this.#uses >= this.#period) this.#halve();
    return count;
  }

  #halve(): void {
    this.#uses = 0;
    for (const cells of this.#rows)
      for (let cell = 0; cell < cells.length; cell++) cells[cell] = (cells[cell] ?? 0) >> 1;
  }

  /** Multiply and shift with an odd constant for each row; the finaliser of MurmurHash3 spreads keys that differ in few bits. */
  #cell(keyBits: number, row: number): number {
    let bits = Math.imul(keyBits ^ (row * 0x9e3779b9), 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    return (bits ^ (bits >>> 16)) & this.#mask;
  }
}
