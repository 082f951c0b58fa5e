import type { Instant } from "../time.ts";

/** What a worker or a recovered disk has of one block. */
export interface StoredBlock {
  /** 16 bytes. */
  readonly key: Uint8Array;
  /** 32 hex digits: whose. */
  readonly tenant: string;
  /** Tokens before it in its text. */
  readonly position: number;
  /** Of its value. */
  readonly byteCount: number;
  /** NEVER where it has no end. */
  readonly expiresAt: Instant;
}

export interface StoreLimits {
  /** Bytes of the memory tier that may be used; a rest stays free for reads from disk. */
  readonly memoryBytes: number;
  /** Bytes of the disk tier that may be used, dead records not counted; 0 without one. */
  readonly diskBytes: number;
  /** Bytes of both tiers that one tenant may have, each block once. */
  readonly tenantBytes: number;
  /** Blocks that there may be: what the tables are made for. */
  readonly blockCount: number;
  /**
   * Share of the disk tier up to which every block is written; beyond it, only those that were used before. Larger: more hits; smaller: the
   * disk is written less (docs/results/eviction.md).
   */
  readonly diskOpenShare: number;
}

export type StoreEvent =
  /** Somebody has blocks that the store might want; `sourceId` names him to whoever pulls. */
  | { readonly kind: "BlocksOffered"; readonly sourceId: string; readonly blocks: readonly StoredBlock[] }
  /** A block that was being pulled is in memory. */
  | { readonly kind: "BlockArrived"; readonly key: Uint8Array }
  /** It did not come. */
  | { readonly kind: "PullFailed"; readonly key: Uint8Array }
  /** Its record is durable. */
  | { readonly kind: "BlockPersisted"; readonly key: Uint8Array }
  /** It could not be written. */
  | { readonly kind: "PersistFailed"; readonly key: Uint8Array }
  /** It was found at opening. */
  | { readonly kind: "BlockRecovered"; readonly block: StoredBlock }
  /** It was read from disk, and is in memory now too. */
  | { readonly kind: "BlockLoaded"; readonly key: Uint8Array }
  /** The sidecar does not have what was thought to be there: damaged, or lost with memory. */
  | { readonly kind: "BlockMissing"; readonly key: Uint8Array }
  /** An operator keeps these blocks, here or not, and no others. */
  | { readonly kind: "BlocksKept"; readonly keys: readonly Uint8Array[] }
  | { readonly kind: "TimePassed" };

export type StoreMedium = "memory" | "disk";

/** What the shell does, in order. */
export type StoreEffect =
  | { readonly kind: "PullBlocks"; readonly sourceId: string; readonly keys: readonly Uint8Array[] }
  | { readonly kind: "PersistBlock"; readonly key: Uint8Array }
  | { readonly kind: "DropFromMemory"; readonly key: Uint8Array }
  /** From both tiers. */
  | { readonly kind: "RemoveBlock"; readonly key: Uint8Array }
  /** For the routers. */
  | { readonly kind: "TellStored"; readonly medium: StoreMedium; readonly key: Uint8Array }
  | { readonly kind: "TellRemoved"; readonly medium: StoreMedium; readonly key: Uint8Array };
