import { BlockHashTable } from "../prefix/hash-table.ts";
import type { Instant } from "../time.ts";
import type { StoredBlock } from "./store-event.ts";

/** What a slot's block is going through. */
export const [IN_MEMORY, ON_DISK, BEING_PULLED, BEING_PERSISTED] = [1, 2, 4, 8] as const;

/** The blocks of a store in dense slots: typed arrays, some 60 bytes a block, so that 10 M of them fit into one Node process. */
export class BlockTable {
  readonly states: Uint8Array;
  readonly pinCounts: Uint16Array;
  /** 1: an operator keeps it. */
  readonly isKept: Uint8Array;
  readonly byteCounts: Uint32Array;
  readonly positions: Uint32Array;
  readonly tenants: Uint16Array;
  readonly expiries: Float64Array;
  readonly #keys: BlockHashTable;
  readonly #free: Int32Array;
  #freeCount: number;
  readonly #tenantNames: string[] = [];
  readonly #tenantNumbers = new Map<string, number>();

  constructor(blockCount: number) {
    this.states = new Uint8Array(blockCount);
    this.pinCounts = new Uint16Array(blockCount);
    this.isKept = new Uint8Array(blockCount);
    this.byteCounts = new Uint32Array(blockCount);
    this.positions = new Uint32Array(blockCount);
    this.tenants = new Uint16Array(blockCount);
    this.expiries = new Float64Array(blockCount);
    this.#keys = new BlockHashTable(blockCount);
    this.#free = Int32Array.from({ length: blockCount }, (_, index) => blockCount - 1 - index);
    this.#freeCount = blockCount;
  }

  get size(): number {
    return this.#keys.size;
  }

  get isFull(): boolean {
    return this.#freeCount === 0;
  }

  find(keys: Uint8Array, offset = 0): number | undefined {
    return this.#keys.find(keys, offset);
  }

  keyOf(slot: number): Uint8Array {
    return this.#keys.hashOf(slot);
  }

  tenantOf(slot: number): string {
    return this.#tenantNames[this.tenants[slot] ?? 0] ?? "";
  }

  /** A slot for a block that has none; undefined when there is no slot, or there are more tenants than can be told apart. */
  add(block: StoredBlock, state: number): number | undefined {
    const tenant = this.#numberOf(block.tenant);
    if (this.#freeCount === 0 || tenant === undefined) return undefined;
    const slot = this.#free[--this.#freeCount] as number;
    this.#keys.insert(slot, block.key, 0);
    this.states[slot] = state;
    this.byteCounts[slot] = block.byteCount;
    this.positions[slot] = block.position;
    this.tenants[slot] = tenant;
    this.expiries[slot] = block.expiresAt;
    return slot;
  }

  delete(slot: number): void {
    this.#keys.remove(slot);
    this.states[slot] = 0;
    this.#free[this.#freeCount++] = slot;
  }

  isExpired(slot: number, now: Instant): boolean {
    return (this.expiries[slot] as number) <= now;
  }

  /** Slots in use. */
  *slots(): Generator<number> {
    for (let slot = 0; slot < this.states.length; slot++) if (this.#keys.has(slot)) yield slot;
  }

  #numberOf(tenant: string): number | undefined {
    const known = this.#tenantNumbers.get(tenant);
    if (known !== undefined) return known;
    if (this.#tenantNames.length > 0xffff) return undefined;
    this.#tenantNumbers.set(tenant, this.#tenantNames.length);
    return this.#tenantNames.push(tenant) - 1;
  }
}
