import { assert } from "../assert.ts";

const NONE = -1;

/** Slots in a row, oldest first, each in at most one list of a family that shares the arrays: O(1) anywhere, 8 bytes a slot in all. */
export class SlotList {
  readonly #next: Int32Array;
  readonly #before: Int32Array;
  #oldest = NONE;
  #newest = NONE;
  #size = 0;

  /** The first list over so many slots. */
  static over(slotCount: number): SlotList {
    return new SlotList(new Int32Array(slotCount).fill(NONE), new Int32Array(slotCount).fill(NONE));
  }

  /** Another list over the same slots: a slot that changes lists is removed from one and pushed on the other. */
  sibling(): SlotList {
    return new SlotList(this.#next, this.#before);
  }

  private constructor(next: Int32Array, before: Int32Array) {
    this.#next = next;
    this.#before = before;
  }

  get size(): number {
    return this.#size;
  }

  /** Adds a slot that is in no list as the newest. */
  push(slot: number): void {
    this.#next[slot] = NONE;
    this.#before[slot] = this.#newest;
    if (this.#newest === NONE) this.#oldest = slot;
    else this.#next[this.#newest] = slot;
    this.#newest = slot;
    this.#size++;
  }

  /** Takes a slot of this list out. */
  remove(slot: number): void {
    assert(this.#size > 0, `slot ${slot} is removed from an empty list`);
    const [next, before] = [this.#next[slot] ?? NONE, this.#before[slot] ?? NONE];
    if (next === NONE) this.#newest = before;
    else this.#before[next] = before;
    if (before === NONE) this.#oldest = next;
    else this.#next[before] = next;
    this.#size--;
  }

  /** The `count` oldest slots, or as many as there are, oldest first. */
  oldest(count: number): number[] {
    const slots: number[] = [];
    for (let slot = this.#oldest; slot !== NONE && slots.length < count; slot = this.#next[slot] ?? NONE)
      slots.push(slot);
    return slots;
  }

  /** The oldest slot. */
  first(): number | undefined {
    return this.#oldest === NONE ? undefined : this.#oldest;
  }
}
