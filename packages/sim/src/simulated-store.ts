import {
  CacheJournal,
  type HolderEvent,
  type Instant,
  NEVER,
  nanosFromMs,
  StoreAdmission,
  StoreDirectory,
  type StoredBlock,
  type StoreEffect,
  type StoreEvent,
  type StoreFacts,
} from "@kvasir/core";
import type { EventQueue } from "./event-queue.ts";
import { Link, type LinkOptions } from "./link.ts";

const HASH_BYTES = 16;
const CHANGES_MAX = 1 << 20;

/** A store beside the workers. */
export interface StoreSpec {
  readonly memoryBytes: number;
  readonly diskBytes: number;
  readonly diskBytesPerSecond: number;
  readonly link: LinkOptions;
}

/** What a request used of a worker's cache, as that worker tells. */
export interface UsedBlocks {
  readonly requestId: string;
  readonly tenant: string;
  readonly hashes: Uint8Array;
  readonly prefillTokensPerSecond: number;
}

/** The production directory, admission and eviction of a store, around a link, a disk of a bandwidth, and what it tells routers. */
export class SimulatedStore {
  readonly facts: StoreFacts;
  readonly epoch = 1;
  readonly directory: StoreDirectory;
  readonly #admission: StoreAdmission;
  readonly #journals = { memory: new CacheJournal(CHANGES_MAX), disk: new CacheJournal(CHANGES_MAX) };
  readonly #told = { memory: 0, disk: 0 };
  readonly #link: Link;
  readonly #disk: Link;
  readonly #blockBytes: number;
  readonly #events: EventQueue;
  #sequence = 0;

  constructor(facts: StoreFacts, spec: StoreSpec, blockBytes: number, events: EventQueue) {
    const { memoryBytes, diskBytes, diskBytesPerSecond, link } = spec;
    this.facts = facts;
    this.#events = events;
    this.#blockBytes = blockBytes;
    this.#link = new Link(link);
    this.#disk = new Link({ bytesPerSecond: diskBytesPerSecond, latencyMs: 0.1 });
    const blockCount = Math.max(1, Math.ceil((memoryBytes + diskBytes) / blockBytes));
    const tenantBytes = memoryBytes + diskBytes;
    this.directory = new StoreDirectory({ memoryBytes, diskBytes, tenantBytes, blockCount, diskOpenShare: 0.9 });
    this.#admission = new StoreAdmission({
      policy: "cost",
      keyCount: 4 * blockCount + (1 << 16),
      blockTokenCount: facts.blockSize,
      blockBytes,
      bytesPerSecond: link.bytesPerSecond,
    });
  }

  /** Pulls over `source`, the worker's link, what is worth it. */
  used({ requestId, tenant, hashes, prefillTokensPerSecond }: UsedBlocks, source: Link): void {
    const admitted = this.#admission.used({ requestId, hashes, prefillTokensPerSecond });
    const blocks = Array.from({ length: admitted }, (_, index): StoredBlock => {
      const key = hashes.slice(index * HASH_BYTES, (index + 1) * HASH_BYTES);
      const position = index * this.facts.blockSize;
      return { key, tenant, position, byteCount: this.#blockBytes, expiresAt: NEVER };
    });
    if (blocks.length > 0) this.#apply({ kind: "BlocksOffered", sourceId: requestId, blocks }, source);
  }

  /** When the blocks that it still has of the wanted ones would be at a worker, and how many they are. They stay until then. */
  lend(hashes: Uint8Array, fromBlock: number, tenant: string): { readonly blockCount: number; readonly at: Instant } {
    const { now } = this.#events;
    const blockCount = this.directory.lookUp(hashes, tenant, now);
    const keys: Uint8Array[] = [];
    for (let index = fromBlock; index < blockCount; index++) {
      const key = hashes.slice(index * HASH_BYTES, (index + 1) * HASH_BYTES);
      if (this.directory.pin(key)) keys.push(key);
    }
    const at = this.#link.arrival(keys.length * this.#blockBytes, now);
    this.#events.at(at, () => {
      for (const key of keys) this.directory.unpin(key, this.#events.now);
    });
    return { blockCount, at };
  }

  /** What routers have not been told yet. */
  changes(): readonly HolderEvent[] {
    const found: HolderEvent[] = [];
    for (const name of ["memory", "disk"] as const) {
      const reading = this.#journals[name].read(this.#told[name], CHANGES_MAX);
      if (reading.kind === "gap") throw new Error("a simulated store's journal is read at each report");
      this.#told[name] = reading.next;
      const common = { epoch: this.epoch, medium: name === "memory" ? ("store" as const) : ("disk" as const) };
      const { removed, stored } = reading;
      if (removed.length > 0)
        found.push({ ...common, kind: "BlocksRemoved", sequence: ++this.#sequence, hashes: removed });
      if (stored.length > 0)
        found.push({ ...common, kind: "BlocksStored", sequence: ++this.#sequence, hashes: stored });
    }
    return found;
  }

  #apply(event: StoreEvent, source?: Link): void {
    for (const effect of this.directory.apply(event, this.#events.now)) this.#perform(effect, source);
  }

  #perform(effect: StoreEffect, source: Link | undefined): void {
    switch (effect.kind) {
      case "PullBlocks": {
        const at = source?.arrival(effect.keys.length * this.#blockBytes, this.#events.now) ?? this.#events.now;
        this.#events.at(at, () => {
          for (const key of effect.keys) this.#apply({ kind: "BlockArrived", key });
        });
        break;
      }
      case "PersistBlock": {
        const at = this.#disk.arrival(this.#blockBytes, this.#events.now);
        this.#events.at((at + nanosFromMs(1)) as Instant, () =>
          this.#apply({ kind: "BlockPersisted", key: effect.key }),
        );
        break;
      }
      case "TellStored":
        this.#journals[effect.medium].append("stored", effect.key);
        break;
      case "TellRemoved":
        this.#journals[effect.medium].append("removed", effect.key);
        break;
      case "DropFromMemory":
      case "RemoveBlock":
        break;
    }
  }
}
