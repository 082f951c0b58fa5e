import { assert } from "../assert.ts";

const NONE = -1;

/** Slots by score, lowest first: a binary heap that knows where each slot is. 16 bytes a slot; equal scores by slot. */
export class ScoreQueue {
  readonly #heap: Int32Array;
  readonly #places: Int32Array;
  readonly #scores: Float64Array;
  #size = 0;

  constructor(slotCount: number) {
    this.#heap = new Int32Array(slotCount);
    this.#places = new Int32Array(slotCount).fill(NONE);
    this.#scores = new Float64Array(slotCount);
  }

  get size(): number {
    return this.#size;
  }

  has(slot: number): boolean {
    return this.#places[slot] !== NONE;
  }

  /** Puts a slot in, or gives it another score. */
  set(slot: number, score: number): void {
    this.#scores[slot] = score;
    let place = this.#places[slot] ?? NONE;
    if (place === NONE) {
      place = this.#size++;
      this.#put(slot, place);
    }
    this.#down(this.#up(place));
  }

  delete(slot: number): void {
    const place = this.#places[slot] ?? NONE;
    if (place === NONE) return;
    this.#places[slot] = NONE;
    const last = this.#heap[--this.#size] as number;
    if (last === slot) return;
    this.#put(last, place);
    this.#down(this.#up(place));
  }

  /** The slot with the lowest score. */
  first(): number | undefined {
    return this.#size === 0 ? undefined : this.#heap[0];
  }

  checkInvariants(): void {
    for (let place = 0; place < this.#size; place++) {
      const slot = this.#heap[place] as number;
      assert(this.#places[slot] === place, `slot ${slot} is not where it is filed`);
      assert(place === 0 || !this.#isBefore(slot, this.#heap[(place - 1) >> 1] as number), `slot ${slot} is too deep`);
    }
  }

  #put(slot: number, place: number): void {
    this.#heap[place] = slot;
    this.#places[slot] = place;
  }

  #isBefore(a: number, b: number): boolean {
    const [scoreA, scoreB] = [this.#scores[a] as number, this.#scores[b] as number];
    return scoreA < scoreB || (scoreA === scoreB && a < b);
  }

  #up(from: number): number {
    const slot = this.#heap[from] as number;
    let place = from;
    while (place > 0) {
      const parent = this.#heap[(place - 1) >> 1] as number;
      if (!this.#isBefore(slot, parent)) break;
      this.#put(parent, place);
      place = (place - 1) >> 1;
    }
    this.#put(slot, place);
    return place;
  }

  #down(from: number): void {
    const slot = this.#heap[from] as number;
    let place = from;
    for (;;) {
      let child = 2 * place + 1;
      if (child >= this.#size) break;
      if (child + 1 < this.#size && this.#isBefore(this.#heap[child + 1] as number, this.#heap[child] as number))
        child++;
      if (!this.#isBefore(this.#heap[child] as number, slot)) break;
      this.#put(this.#heap[child] as number, place);
      place = child;
    }
    this.#put(slot, place);
  }
}
