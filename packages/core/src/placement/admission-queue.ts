import { assert } from "../assert.ts";
import type { RequestKey } from "./reservations.ts";

/**
 * Requests that wait for room, first come first served within one model: a long prompt is not starved by short ones behind it, and
 * one model's shortage does not hold up another. A request that returns for another placement keeps the place its arrival gave it.
 */
export class AdmissionQueue {
  readonly #lanes = new Map<string, RequestKey[]>();
  #size = 0;

  get size(): number {
    return this.#size;
  }

  models(): readonly string[] {
    return [...this.#lanes.keys()];
  }

  /** Waiting requests of a model, earliest first. A copy: the queue may change while it is walked. */
  lane(model: string): readonly RequestKey[] {
    return this.#lanes.get(model)?.slice() ?? [];
  }

  laneSize(model: string): number {
    return this.#lanes.get(model)?.length ?? 0;
  }

  add(model: string, key: RequestKey): void {
    const lane = this.#lanes.get(model);
    this.#size++;
    if (lane === undefined) {
      this.#lanes.set(model, [key]);
      return;
    }
    const index = lowerBound(lane, key);
    assert(lane[index] !== key, `request ${key} waits already`);
    lane.splice(index, 0, key);
  }

  /** False when it did not wait. */
  remove(model: string, key: RequestKey): boolean {
    const lane = this.#lanes.get(model);
    if (lane === undefined) return false;
    const index = lowerBound(lane, key);
    if (lane[index] !== key) return false;
    lane.splice(index, 1);
    this.#size--;
    if (lane.length === 0) this.#lanes.delete(model);
    return true;
  }

  /** Requests of the same model before this one. */
  position(model: string, key: RequestKey): number {
    return lowerBound(this.#lanes.get(model) ?? [], key);
  }

  checkInvariants(): void {
    let size = 0;
    for (const [model, lane] of this.#lanes) {
      assert(lane.length > 0, `the lane of ${model} is empty and kept`);
      size += lane.length;
      lane.forEach((key, index) => {
        assert(index === 0 || (lane[index - 1] ?? key) < key, `the lane of ${model} is out of order at ${key}`);
      });
    }
    assert(size === this.#size, `the queue counts ${this.#size} and holds ${size}`);
  }
}

/** Index of the first key that is not smaller. */
function lowerBound(lane: readonly RequestKey[], key: RequestKey): number {
  let low = 0;
  let high = lane.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((lane[middle] ?? key) < key) low = middle + 1;
    else high = middle;
  }
  return low;
}
