import type { BlockFacts, EvictionPolicy } from "./eviction-policy.ts";
import { SlotList } from "./slot-list.ts";

/** Least recently used: what the others are compared with. */
export class LruPolicy implements EvictionPolicy {
  readonly #list: SlotList;
  readonly #held: Uint8Array;

  constructor(slotCount: number) {
    this.#list = SlotList.over(slotCount);
    this.#held = new Uint8Array(slotCount);
  }

  get size(): number {
    return this.#list.size;
  }

  insert(slot: number, _facts: BlockFacts): void {
    this.#held[slot] = 1;
    this.#list.push(slot);
  }

  touch(slot: number): void {
    this.#list.remove(slot);
    this.#list.push(slot);
  }

  remove(slot: number): void {
    if (this.#held[slot] === 0) return;
    this.#held[slot] = 0;
    this.#list.remove(slot);
  }

  evict(): number | undefined {
    const slot = this.#list.first();
    if (slot !== undefined) this.remove(slot);
    return slot;
  }
}
