import { randomBytes } from "node:crypto";
import type { Metadata } from "@grpc/grpc-js";
import { type BlockId, KvasirError } from "@kvasir/core";
import type { FetchResponse, LendingService, LendResponse, Loan, WorkerRef } from "@kvasir/proto";
import type { RpcClient } from "@kvasir/rpc";
import type { Kernel } from "../kernel/kernel.ts";
import type { PeerClients } from "../peer-clients.ts";

export interface BorrowingFacts {
  readonly lenders: PeerClients<typeof LendingService>;
  readonly lender: WorkerRef;
  readonly kernel: Kernel;
  readonly metadata: Metadata;
  /** 16 bytes. */
  readonly tenantScope: Uint8Array;
  /** Of the blocks wanted, from `tokenBegin` on; 16 bytes each. */
  readonly hashes: Uint8Array;
  readonly tokenBegin: number;
  readonly blockSize: number;
}

/** What a loan tells its owner, as long as it is not ended. */
export interface BorrowingListener {
  /** Some of the blocks, at least one, can be fetched. */
  lent(loan: Loan): void;
  progress(progress: FetchResponse): void;
  broken(error: unknown): void;
}

/** Blocks of a store: the loan, whose stream is open as long as they are read, and the fetch from the store's sidecar. */
export class Borrowing {
  readonly #facts: BorrowingFacts;
  readonly #listener: BorrowingListener;
  readonly #fetchId = randomBytes(16);
  readonly #call: ReturnType<RpcClient<typeof LendingService>["lend"]>;
  #fetch: ReturnType<Kernel["fetch"]> | undefined;
  #isOver = false;

  constructor(facts: BorrowingFacts, listener: BorrowingListener) {
    this.#facts = facts;
    this.#listener = listener;
    const { lenders, lender, metadata, tenantScope, hashes, tokenBegin, blockSize } = facts;
    this.#call = lenders.open(lender.address, (client) => client.lend({ metadata }));
    this.#call.on("data", ({ kind }: LendResponse) => {
      if (this.#isOver || kind.case !== "loan") return;
      if (kind.value.blockCount > 0) listener.lent(kind.value);
      else this.#broken(ended("lease_expired", `${lender.workerId} has none of the blocks any more`));
    });
    this.#call.on("error", (error) => this.#broken(error));
    this.#call.on("end", () => this.#broken(ended("unavailable", `${lender.workerId} ended the loan before its time`)));
    const firstBlock = tokenBegin / blockSize;
    const start = { expectedEpoch: lender.epoch, tenantScope, hashes, firstBlock };
    this.#call.write({ kind: { case: "start", value: start } });
  }

  /** Fetches what is lent. */
  fetch({ ticket, source, blockCount }: Loan, blockIds: readonly BlockId[], deadlineMs: number): void {
    const { kernel, metadata, tenantScope, tokenBegin, blockSize } = this.#facts;
    const request = {
      leaseId: this.#fetchId,
      ...(ticket ? { ticket } : {}),
      ...(source ? { source } : {}),
      blockIds: [...blockIds],
      tokenBegin,
      tokenEnd: tokenBegin + blockCount * blockSize,
      tenantScope,
      deadlineMs,
    };
    this.#fetch = kernel.fetch(request, metadata);
    let complete = false;
    this.#fetch.on("data", (progress: FetchResponse) => {
      complete = progress.complete;
      if (!this.#isOver) this.#listener.progress(progress);
    });
    this.#fetch.on("error", (error) => this.#broken(error));
    this.#fetch.on("end", () => {
      if (!complete) this.#broken(ended("unavailable", "the fetch ended before its last block"));
    });
  }

  /** Nothing more is wanted. Resolves when nothing writes. */
  async end(): Promise<void> {
    if (!this.#isOver) {
      this.#isOver = true;
      this.#fetch?.cancel();
      this.#call.cancel();
    }
    if (this.#fetch) await this.#facts.kernel.fence(this.#fetchId);
  }

  #broken(error: unknown): void {
    if (!this.#isOver) this.#listener.broken(error);
  }
}

function ended(reason: "lease_expired" | "unavailable", message: string): KvasirError {
  return new KvasirError({ reason, message: `${message}; compute them` });
}
