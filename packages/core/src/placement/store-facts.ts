import type { AttachedMember } from "./cluster-view.ts";

/** What stays true of a store for as long as its incarnation lives. */
export interface StoreFacts {
  /** Stable name: of a store. */
  readonly workerId: string;
  /** host:port of its gRPC services. */
  readonly address: string;
  /** Served model name. */
  readonly model: string;
  /** As hex: whose KV its blocks are, bit for bit. */
  readonly exactFingerprint: string;
  /** Tokens per block. */
  readonly blockSize: number;
  /** Its sidecar; see `WorkerFacts`. */
  readonly transferAddress?: string;
}

export interface StoreLoad {
  /** Lends to nobody new. */
  readonly isDraining: boolean;
}

export type AttachedStore = AttachedMember<StoreFacts, StoreLoad>;
