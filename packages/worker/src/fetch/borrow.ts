import type { Metadata } from "@grpc/grpc-js";
import { KvasirError } from "@kvasir/core";
import type { KvSource, LendingService, LendResponse, Ticket, WorkerRef } from "@kvasir/proto";
import type { PeerClients } from "../peer-clients.ts";

/** Channels to those who lend: workers and stores. */
export type Lenders = PeerClients<typeof LendingService>;

/** What a holder lends, for as long as the loan lasts. */
export interface LentKv {
  readonly ticket: Ticket;
  readonly source: KvSource;
  /** So many of the blocks that were asked for, from the first on. */
  readonly blockCount: number;
  /** For each of them, whether it came from a disk. */
  readonly fromDisk: readonly boolean[];
}

export interface LoanFacts {
  readonly lenders: Lenders;
  readonly holder: WorkerRef;
  /** 16 bytes. */
  readonly tenantScope: Uint8Array;
  /** Of the blocks wanted, 16 bytes each. */
  readonly hashes: Uint8Array;
  /** Blocks before them in their text. */
  readonly firstBlock: number;
  readonly metadata: Metadata;
}

export interface LoanListener {
  /** Once, with at least one block, unless the loan is broken before. */
  lent(kv: LentKv): void;
  /** Nothing is lent, or not any more. */
  broken(error: unknown): void;
}

/** Cached blocks that a holder keeps in place for us. */
export interface KvLoan {
  /** Nothing is read any more. Nothing is told after it. */
  end(): void;
}

/** Borrows from a worker or a store: the loan lives as long as its stream. */
export function borrow(facts: LoanFacts, listener: LoanListener): KvLoan {
  const { lenders, holder, tenantScope, hashes, firstBlock, metadata } = facts;
  let isOver = false;
  let isAnswered = false;
  const broken = (error: unknown) => {
    if (!isOver) listener.broken(error);
  };
  const call = lenders.open(holder.address, (client) => client.lend({ metadata }));
  call.on("data", ({ kind }: LendResponse) => {
    if (isOver || kind.case !== "loan") return;
    isAnswered = true;
    const { ticket, source, blockCount, fromDisk } = kind.value;
    if (blockCount > 0 && ticket && source) listener.lent({ ticket, source, blockCount, fromDisk });
    else broken(ended("lease_expired", `${holder.workerId} has none of the blocks any more`));
  });
  call.on("error", broken);
  call.on("end", () => broken(ended("unavailable", `${holder.workerId} ended the loan before its time`)));
  const start = { expectedEpoch: holder.epoch, tenantScope, hashes, firstBlock };
  call.write({ kind: { case: "start", value: start } });
  return {
    end() {
      isOver = true;
      if (!isAnswered) lenders.forget(holder.address);
      call.cancel();
    },
  };
}

function ended(reason: "lease_expired" | "unavailable", message: string): KvasirError {
  return new KvasirError({ reason, message: `${message}; compute them` });
}
