import { randomBytes } from "node:crypto";
import { type Placement, PlacementMode, type WorkerRef } from "@kvasir/proto";
import { errorFromService, isTyped } from "@kvasir/rpc";

/** Which transfer the decode worker of the next attempt asks for. */
export interface TransferChoice {
  readonly transferId: Uint8Array;
  /** A decode worker that was lost used it. */
  readonly adoptsTransfer: boolean;
}

/** Lets a new decode worker pull what a prefill worker computed for one that was lost without a word, instead of having it computed again. */
export class TransferKeeper {
  #last: { readonly prefill: WorkerRef; readonly transferId: Uint8Array } | undefined;
  #isKept = false;

  /** The prefill worker that may still hold KV for the next attempt; empty: none does. */
  get keptPrefillWorkerId(): string {
    return this.#isKept ? (this.#last?.prefill.workerId ?? "") : "";
  }

  /** For an attempt at this placement. */
  choose({ mode, prefill }: Placement): TransferChoice {
    const last = this.#last;
    const adoptsTransfer =
      this.#isKept && last?.prefill.workerId === prefill?.workerId && last?.prefill.epoch === prefill?.epoch;
    const transferId = adoptsTransfer && last ? last.transferId : new Uint8Array(randomBytes(16));
    this.#isKept = false;
    this.#last = mode === PlacementMode.SPLIT && prefill !== undefined ? { prefill, transferId } : undefined;
    return { transferId, adoptsTransfer };
  }

  /** An attempt ended. What a decode worker itself gave up, or has pulled, is gone; after a second token it has pulled all. */
  failed(error: unknown, tokenCount: number): void {
    const wasSilent = errorFromService(error).reason === "deadline_exceeded";
    this.#isKept = this.#last !== undefined && tokenCount <= 1 && (wasSilent || !isTyped(error));
  }
}
