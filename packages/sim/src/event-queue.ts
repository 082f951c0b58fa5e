import type { Instant } from "@kvasir/core";

interface Entry {
  readonly at: Instant;
  readonly number: number;
  readonly run: () => void;
}

/** What happens next in virtual time: a binary heap by time, and among equal times by the order in which things were planned. */
export class EventQueue {
  readonly #heap: Entry[] = [];
  #now = 0 as Instant;
  #number = 0;

  get now(): Instant {
    return this.#now;
  }

  /** Runs `run` at `at`, or now if that is past. */
  at(at: Instant, run: () => void): void {
    const entry: Entry = { at: at < this.#now ? this.#now : at, number: this.#number++, run };
    const heap = this.#heap;
    let index = heap.length;
    heap.push(entry);
    while (index > 0) {
      const parent = (index - 1) >>> 1;
      const above = heap[parent] as Entry;
      if (isBefore(above, entry)) break;
      heap[index] = above;
      index = parent;
    }
    heap[index] = entry;
  }

  after(nanos: number, run: () => void): void {
    this.at((this.#now + Math.round(nanos)) as Instant, run);
  }

  /** False when nothing is left. */
  runNext(): boolean {
    const heap = this.#heap;
    const [first] = heap;
    if (first === undefined) return false;
    const last = heap.pop() as Entry;
    if (heap.length > 0) this.#sink(last);
    this.#now = first.at;
    first.run();
    return true;
  }

  #sink(entry: Entry): void {
    const heap = this.#heap;
    let index = 0;
    for (let child = 1; child < heap.length; child = 2 * index + 1) {
      const right = heap[child + 1];
      if (right !== undefined && isBefore(right, heap[child] as Entry)) child++;
      const smaller = heap[child] as Entry;
      if (isBefore(entry, smaller)) break;
      heap[index] = smaller;
      index = child;
    }
    heap[index] = entry;
  }
}

function isBefore(a: Entry, b: Entry): boolean {
  return a.at < b.at || (a.at === b.at && a.number < b.number);
}
