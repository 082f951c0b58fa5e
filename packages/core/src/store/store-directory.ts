import { assert } from "../assert.ts";
import { ScoredPolicy } from "../eviction/scored-policy.ts";
import { SlotList } from "../eviction/slot-list.ts";
import { UseSketch } from "../eviction/use-sketch.ts";
import type { Instant } from "../time.ts";
import { BEING_PERSISTED, BEING_PULLED, BlockTable, IN_MEMORY, ON_DISK } from "./block-table.ts";
import { keyText } from "./kept-keys.ts";
import { keyBits } from "./key-bits.ts";
import type { StoredBlock, StoreEffect, StoreEvent, StoreLimits, StoreMedium } from "./store-event.ts";

/** Blocks among which a tenant above its share loses one. Larger: beginnings of texts are spared longer; smaller: nearer to LRU. */
const LEAST_USED_COUNT = 16;

/**
 * What a store holds, what it takes, and what leaves: a state machine whose effects the shell has the sidecar do. The sidecar knows where bytes
 * lie; which of them stay is known here only, so that the simulator and the service decide by the same code.
 *
 * A block that is offered is pulled once, whoever else offers it meanwhile (single flight), if its tenant has room and memory can make some. It
 * comes to memory and is written to disk if the disk has room, or if it was used before: the first use alone is no reason to wear a disk. What
 * leaves memory stays on disk if it is there; what leaves the disk leaves memory too. A tenant above its share loses its own blocks, nobody
 * else's, of those least recently used the ends of texts first. A pinned block is being read: it neither leaves nor expires before its last pin
 * is gone. A block that an operator keeps goes to disk, leaves memory only when it is there, and leaves the store when its life is over and not
 * for want of room. Whatever does not fit is simply not stored.
 */
export class StoreDirectory {
  readonly #limits: StoreLimits;
  readonly #table: BlockTable;
  readonly #memory: ScoredPolicy;
  readonly #disk: ScoredPolicy;
  /** Of keys, held or not: one use counts once for both tiers. */
  readonly #uses: UseSketch;
  readonly #tenantBytes = new Map<string, number>();
  /** Each tenant's blocks that may leave, least recently used first. */
  readonly #tenantLists = new Map<string, SlotList>();
  readonly #lists: SlotList;
  readonly #isListed: Uint8Array;
  #memoryBytes = 0;
  #diskBytes = 0;
  #pinnedBlockCount = 0;
  /** Of blocks that are kept, here or not. */
  #keptKeys: ReadonlyMap<string, Uint8Array> = new Map();
  #effects: StoreEffect[] = [];

  constructor(limits: StoreLimits) {
    this.#limits = limits;
    this.#table = new BlockTable(limits.blockCount);
    this.#uses = new UseSketch(2 * limits.blockCount);
    this.#memory = new ScoredPolicy(limits.blockCount, {}, this.#uses);
    this.#disk = new ScoredPolicy(limits.blockCount, {}, this.#uses);
    this.#lists = SlotList.over(limits.blockCount);
    this.#isListed = new Uint8Array(limits.blockCount);
  }

  get blockCount(): number {
    return this.#table.size;
  }

  /** Bytes of blocks in memory, those on their way among them. */
  get memoryBytes(): number {
    return this.#memoryBytes;
  }

  /** Bytes of blocks on disk, those on their way among them. */
  get diskBytes(): number {
    return this.#diskBytes;
  }

  /** Blocks with at least one pin. */
  get pinnedBlockCount(): number {
    return this.#pinnedBlockCount;
  }

  /** Whether a block is here, or on its way. */
  has(key: Uint8Array): boolean {
    return this.#table.find(key) !== undefined;
  }

  /** Whether an operator keeps a block, here or not. */
  isKept(key: Uint8Array): boolean {
    return this.#keptKeys.size > 0 && this.#keptKeys.has(keyText(key));
  }

  /** Blocks that an operator keeps: all of them, and those that can be read. */
  get keptBlockCounts(): { readonly wanted: number; readonly present: number } {
    let present = 0;
    for (const key of this.#keptKeys.values()) if (this.isReadable(key)) present++;
    return { wanted: this.#keptKeys.size, present };
  }

  /** Whether a block is in memory or on disk. */
  isReadable(key: Uint8Array): boolean {
    const slot = this.#table.find(key);
    return slot !== undefined && (this.#stateOf(slot) & (IN_MEMORY | ON_DISK)) !== 0;
  }

  tenantBytes(tenant: string): number {
    return this.#tenantBytes.get(tenant) ?? 0;
  }

  /**
   * How many of the keys from the first on can be read now, as a use of them: ends before beginnings. Keys of another tenant are misses, which
   * a chain under the tenant's root never meets.
   */
  lookUp(keys: Uint8Array, tenant: string, now: Instant): number {
    const slots: number[] = [];
    for (let offset = 0; offset < keys.length; offset += 16) {
      const slot = this.#table.find(keys, offset);
      if (slot === undefined || !this.#isReadable(slot, tenant, now)) break;
      slots.push(slot);
    }
    for (let offset = keys.length - 16; offset >= 16 * slots.length; offset -= 16)
      this.#uses.add(keyBits(keys, offset));
    for (const slot of slots.toReversed()) this.#use(slot, now);
    return slots.length;
  }

  /** Keeps a block that can be read from leaving, until as many unpins. False: it is not there. */
  pin(key: Uint8Array): boolean {
    const slot = this.#table.find(key);
    if (slot === undefined || (this.#stateOf(slot) & (IN_MEMORY | ON_DISK)) === 0) return false;
    if (this.#table.pinCounts[slot] === 0) this.#pinnedBlockCount++;
    this.#table.pinCounts[slot] = (this.#table.pinCounts[slot] ?? 0) + 1;
    this.#hold(slot);
    return true;
  }

  unpin(key: Uint8Array, now: Instant): void {
    const slot = this.#table.find(key);
    assert(slot !== undefined && (this.#table.pinCounts[slot] ?? 0) > 0, "a block is unpinned that has no pin");
    this.#table.pinCounts[slot] = (this.#table.pinCounts[slot] ?? 0) - 1;
    if (this.#table.pinCounts[slot] !== 0) return;
    this.#pinnedBlockCount--;
    this.#restore(slot, now);
  }

  apply(event: StoreEvent, now: Instant): readonly StoreEffect[] {
    this.#effects = [];
    switch (event.kind) {
      case "BlocksOffered":
        this.#offered(event.sourceId, event.blocks, now);
        break;
      case "BlockArrived":
        this.#arrived(this.#slotOf(event.key), now);
        break;
      case "PullFailed":
        this.#pullFailed(this.#slotOf(event.key));
        break;
      case "BlockPersisted":
        this.#persisted(this.#slotOf(event.key), now);
        break;
      case "PersistFailed":
        this.#persistFailed(this.#slotOf(event.key), now);
        break;
      case "BlockRecovered":
        this.#recovered(event.block, now);
        break;
      case "BlockLoaded":
        this.#loaded(this.#slotOf(event.key), now);
        break;
      case "BlockMissing":
        // Who has it pinned reads it; it is missed again.
        this.#forgetUnlessPinned(this.#slotOf(event.key));
        break;
      case "BlocksKept":
        this.#keep(event.keys, now);
        break;
      case "TimePassed":
        this.#expire(now);
        break;
    }
    return this.#effects;
  }

  /** Every key that can be read from a medium: what a router is told first. */
  *keysOn(medium: StoreMedium): Generator<Uint8Array> {
    const wanted = medium === "memory" ? IN_MEMORY : ON_DISK;
    for (const slot of this.#table.slots()) if ((this.#stateOf(slot) & wanted) !== 0) yield this.#table.keyOf(slot);
  }

  checkInvariants(): void {
    let [memory, disk] = [0, 0];
    const tenants = new Map<string, number>();
    let pinned = 0;
    for (const slot of this.#table.slots()) {
      const [state, bytes] = [this.#stateOf(slot), this.#bytesOf(slot)];
      if (this.#table.pinCounts[slot] !== 0) pinned++;
      assert(state !== 0, `slot ${slot} is kept for a block that is nowhere`);
      if ((state & (IN_MEMORY | BEING_PULLED)) !== 0) memory += bytes;
      if ((state & (ON_DISK | BEING_PERSISTED)) !== 0) disk += bytes;
      const tenant = this.#table.tenantOf(slot);
      tenants.set(tenant, (tenants.get(tenant) ?? 0) + bytes);
    }
    assert(pinned === this.#pinnedBlockCount, `${pinned} blocks are pinned, counted ${this.#pinnedBlockCount}`);
    assert(memory === this.#memoryBytes, `${memory} bytes are in memory, counted ${this.#memoryBytes}`);
    assert(disk === this.#diskBytes, `${disk} bytes are on disk, counted ${this.#diskBytes}`);
    assert(memory <= this.#limits.memoryBytes, `${memory} bytes of ${this.#limits.memoryBytes} are in memory`);
    assert(disk <= this.#limits.diskBytes, `${disk} bytes of ${this.#limits.diskBytes} are on disk`);
    for (const [tenant, bytes] of tenants) {
      assert(bytes === this.tenantBytes(tenant), `tenant ${tenant} has ${bytes}, counted ${this.tenantBytes(tenant)}`);
      assert(bytes <= this.#limits.tenantBytes, `tenant ${tenant} has ${bytes} of ${this.#limits.tenantBytes}`);
    }
  }

  #offered(sourceId: string, blocks: readonly StoredBlock[], now: Instant): void {
    const keys: Uint8Array[] = [];
    for (const block of blocks) {
      const known = this.#table.find(block.key);
      if (known !== undefined && !this.#table.isExpired(known, now)) continue;
      this.#forgetUnlessPinned(known);
      // A prefix with a hole is of no use behind it.
      if (block.expiresAt <= now || !this.#makeRoom(block)) break;
      const slot = this.#add(block, BEING_PULLED);
      if (slot === undefined) break;
      this.#memoryBytes += block.byteCount;
      this.#addToTenant(block.tenant, block.byteCount);
      keys.push(block.key);
    }
    if (keys.length > 0) this.#effects.push({ kind: "PullBlocks", sourceId, keys });
  }

  /** Room in memory, among the tenant's blocks and among the slots; false when pins or pulls hold it. */
  #makeRoom({ tenant, byteCount }: StoredBlock): boolean {
    const { memoryBytes, tenantBytes } = this.#limits;
    if (byteCount > memoryBytes || byteCount > tenantBytes) return false;
    while (this.tenantBytes(tenant) + byteCount > tenantBytes) {
      const slot = this.#leastOf(tenant);
      if (slot === undefined) return false;
      this.#forget(slot, true);
    }
    while (this.#memoryBytes + byteCount > memoryBytes) if (!this.#evictFromMemory()) return false;
    while (this.#table.isFull) {
      const slot = this.#disk.evict();
      if (slot !== undefined) this.#forget(slot, true);
      else if (!this.#evictFromMemory()) return false;
    }
    return true;
  }

  /** A slot for a block that has none. */
  #add(block: StoredBlock, state: number): number | undefined {
    const slot = this.#table.add(block, state);
    if (slot !== undefined) this.#table.isKept[slot] = this.isKept(block.key) ? 1 : 0;
    return slot;
  }

  /** From now on these are kept and no others. */
  #keep(keys: readonly Uint8Array[], now: Instant): void {
    const before = this.#keptKeys;
    this.#keptKeys = new Map(keys.map((key) => [keyText(key), key]));
    for (const [text, key] of before) if (!this.#keptKeys.has(text)) this.#setKept(key, 0, now);
    for (const [text, key] of this.#keptKeys) if (!before.has(text)) this.#setKept(key, 1, now);
  }

  #setKept(key: Uint8Array, isKept: 0 | 1, now: Instant): void {
    const slot = this.#slotOf(key);
    if (slot === undefined) return;
    this.#table.isKept[slot] = isKept;
    if (!this.#isIdle(slot)) return;
    if (isKept === 1 && this.#stateOf(slot) === IN_MEMORY) this.#persist(slot, now);
    else {
      this.#hold(slot);
      this.#restore(slot, now);
    }
  }

  /** Of a tenant's blocks that were not used for the longest time the one that is furthest back in its text. */
  #leastOf(tenant: string): number | undefined {
    const oldest = this.#tenantLists.get(tenant)?.oldest(LEAST_USED_COUNT) ?? [];
    const position = (slot: number) => this.#table.positions[slot] ?? 0;
    return oldest.reduce<number | undefined>(
      (least, slot) => (least !== undefined && position(least) >= position(slot) ? least : slot),
      undefined,
    );
  }

  #arrived(slot: number | undefined, now: Instant): void {
    if (slot === undefined || (this.#stateOf(slot) & BEING_PULLED) === 0) return;
    this.#table.states[slot] = IN_MEMORY;
    const key = this.#table.keyOf(slot);
    this.#memory.insert(slot, this.#factsOf(slot), now);
    this.#list(slot);
    this.#effects.push({ kind: "TellStored", medium: "memory", key });
    if (this.#isWorthDisk(slot) || this.#table.isKept[slot] === 1) this.#persist(slot, now);
  }

  /** Writes a block of memory to disk, if that has room. */
  #persist(slot: number, now: Instant): void {
    // It must stay in memory until it is written.
    this.#hold(slot);
    if (this.#makeDiskRoom(slot)) {
      this.#table.states[slot] = IN_MEMORY | BEING_PERSISTED;
      this.#diskBytes += this.#bytesOf(slot);
      this.#effects.push({ kind: "PersistBlock", key: this.#table.keyOf(slot) });
    } else this.#restore(slot, now);
  }

  #isWorthDisk(slot: number): boolean {
    const { diskBytes, diskOpenShare } = this.#limits;
    const isOpen = this.#diskBytes + this.#bytesOf(slot) <= diskOpenShare * diskBytes;
    return diskBytes > 0 && (isOpen || this.#uses.count(keyBits(this.#table.keyOf(slot))) > 1);
  }

  #makeDiskRoom(slot: number): boolean {
    const bytes = this.#bytesOf(slot);
    if (bytes > this.#limits.diskBytes) return false;
    while (this.#diskBytes + bytes > this.#limits.diskBytes) {
      const victim = this.#disk.evict();
      if (victim === undefined) return false;
      this.#forget(victim, true);
    }
    return true;
  }

  #pullFailed(slot: number | undefined): void {
    if (slot !== undefined && (this.#stateOf(slot) & BEING_PULLED) !== 0) this.#forget(slot, false);
  }

  #persisted(slot: number | undefined, now: Instant): void {
    if (slot === undefined || (this.#stateOf(slot) & BEING_PERSISTED) === 0) return;
    this.#table.states[slot] = (this.#stateOf(slot) & IN_MEMORY) | ON_DISK;
    this.#restore(slot, now);
    this.#effects.push({ kind: "TellStored", medium: "disk", key: this.#table.keyOf(slot) });
  }

  #persistFailed(slot: number | undefined, now: Instant): void {
    if (slot === undefined || (this.#stateOf(slot) & BEING_PERSISTED) === 0) return;
    this.#table.states[slot] = this.#stateOf(slot) & ~BEING_PERSISTED;
    this.#diskBytes -= this.#bytesOf(slot);
    this.#restore(slot, now);
  }

  #recovered(block: StoredBlock, now: Instant): void {
    if (this.#table.find(block.key) !== undefined) return;
    const { diskBytes, tenantBytes } = this.#limits;
    const fits =
      this.#diskBytes + block.byteCount <= diskBytes && this.tenantBytes(block.tenant) + block.byteCount <= tenantBytes;
    const slot = fits && block.expiresAt > now ? this.#add(block, ON_DISK) : undefined;
    if (slot === undefined) {
      this.#effects.push({ kind: "RemoveBlock", key: block.key });
      return;
    }
    this.#diskBytes += block.byteCount;
    this.#addToTenant(block.tenant, block.byteCount);
    this.#restore(slot, now);
    this.#effects.push({ kind: "TellStored", medium: "disk", key: block.key });
  }

  /** Where memory has no room the block is dropped from it again: it can be read once more from disk. */
  #loaded(slot: number | undefined, now: Instant): void {
    if (slot === undefined || (this.#stateOf(slot) & IN_MEMORY) !== 0) return;
    const key = this.#table.keyOf(slot);
    // It must not be what makes room for itself.
    const isIdle = this.#isIdle(slot);
    this.#hold(slot);
    while (this.#memoryBytes + this.#bytesOf(slot) > this.#limits.memoryBytes) {
      if (this.#evictFromMemory()) continue;
      this.#effects.push({ kind: "DropFromMemory", key });
      if (isIdle) this.#restore(slot, now);
      return;
    }
    this.#memoryBytes += this.#bytesOf(slot);
    this.#table.states[slot] = this.#stateOf(slot) | IN_MEMORY;
    if (isIdle) this.#restore(slot, now);
    this.#effects.push({ kind: "TellStored", medium: "memory", key });
  }

  #expire(now: Instant): void {
    for (const slot of this.#table.slots())
      if (this.#table.isExpired(slot, now) && this.#isIdle(slot)) this.#forget(slot, true);
  }

  #evictFromMemory(): boolean {
    const slot = this.#memory.evict();
    if (slot === undefined) return false;
    if ((this.#stateOf(slot) & ON_DISK) === 0) {
      this.#forget(slot, true);
      return true;
    }
    this.#table.states[slot] = ON_DISK;
    this.#memoryBytes -= this.#bytesOf(slot);
    const key = this.#table.keyOf(slot);
    this.#effects.push({ kind: "DropFromMemory", key }, { kind: "TellRemoved", medium: "memory", key });
    return true;
  }

  #forgetUnlessPinned(slot: number | undefined): void {
    if (slot !== undefined && this.#isIdle(slot)) this.#forget(slot, true);
  }

  /** Takes a block out of everything. */
  #forget(slot: number | undefined, tell: boolean): void {
    if (slot === undefined) return;
    const [state, bytes, key] = [this.#stateOf(slot), this.#bytesOf(slot), this.#table.keyOf(slot).slice()];
    if ((state & (IN_MEMORY | BEING_PULLED)) !== 0) this.#memoryBytes -= bytes;
    if ((state & (ON_DISK | BEING_PERSISTED)) !== 0) this.#diskBytes -= bytes;
    this.#addToTenant(this.#table.tenantOf(slot), -bytes);
    this.#hold(slot);
    assert(this.#table.pinCounts[slot] === 0, "a pinned block is forgotten");
    this.#table.delete(slot);
    if (!tell) return;
    this.#effects.push({ kind: "RemoveBlock", key });
    if ((state & IN_MEMORY) !== 0) this.#effects.push({ kind: "TellRemoved", medium: "memory", key });
    if ((state & ON_DISK) !== 0) this.#effects.push({ kind: "TellRemoved", medium: "disk", key });
  }

  /** Takes a block out of all queues: it must stay, or is gone. */
  #hold(slot: number): void {
    this.#memory.remove(slot);
    this.#disk.remove(slot);
    if (this.#isListed[slot] === 1) this.#tenantLists.get(this.#table.tenantOf(slot))?.remove(slot);
    this.#isListed[slot] = 0;
  }

  /** Makes a block the tenant's most recently used one. */
  #list(slot: number): void {
    const tenant = this.#table.tenantOf(slot);
    const list = this.#tenantLists.get(tenant) ?? this.#lists.sibling();
    this.#tenantLists.set(tenant, list);
    if (this.#isListed[slot] === 1) list.remove(slot);
    list.push(slot);
    this.#isListed[slot] = 1;
  }

  #use(slot: number, now: Instant): void {
    this.#uses.add(keyBits(this.#table.keyOf(slot)));
    this.#restore(slot, now);
  }

  /** Files a block that nothing holds by its uses and this moment. */
  #restore(slot: number, now: Instant): void {
    if (!this.#isIdle(slot)) return;
    const facts = this.#factsOf(slot);
    const [state, isKept] = [this.#stateOf(slot), this.#table.isKept[slot] === 1];
    // What is kept may leave memory when it is on disk too, and that is all.
    if ((state & IN_MEMORY) !== 0 && (!isKept || (state & ON_DISK) !== 0)) this.#memory.restore(slot, facts, now);
    if (isKept) return;
    if ((state & ON_DISK) !== 0) this.#disk.restore(slot, facts, now);
    this.#list(slot);
  }

  #isReadable(slot: number, tenant: string, now: Instant): boolean {
    return (
      (this.#stateOf(slot) & (IN_MEMORY | ON_DISK)) !== 0 &&
      this.#table.tenantOf(slot) === tenant &&
      !this.#table.isExpired(slot, now)
    );
  }

  /** Neither pinned nor on its way somewhere. */
  #isIdle(slot: number): boolean {
    return this.#table.pinCounts[slot] === 0 && (this.#stateOf(slot) & (BEING_PULLED | BEING_PERSISTED)) === 0;
  }

  #slotOf(key: Uint8Array): number | undefined {
    return this.#table.find(key);
  }

  #stateOf(slot: number): number {
    return this.#table.states[slot] ?? 0;
  }

  #bytesOf(slot: number): number {
    return this.#table.byteCounts[slot] ?? 0;
  }

  #factsOf(slot: number) {
    return { keyBits: keyBits(this.#table.keyOf(slot)), position: this.#table.positions[slot] ?? 0, worth: 1 };
  }

  #addToTenant(tenant: string, bytes: number): void {
    const sum = this.tenantBytes(tenant) + bytes;
    if (sum === 0) this.#tenantBytes.delete(tenant);
    else this.#tenantBytes.set(tenant, sum);
  }
}
