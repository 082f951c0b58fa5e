import { randomBytes } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Metadata } from "@grpc/grpc-js";
import { type BlockId, KvasirError } from "@kvasir/core";
import {
  CodecLevel,
  type FetchResponse,
  type RunFirstToken,
  type RunResponse,
  type RunStartSchema,
  type RunTicket,
  type WorkerRef,
} from "@kvasir/proto";
import type { Kernel } from "../kernel/kernel.ts";
import type { PrefillPeers } from "./peers.ts";

/** Time for a prefill worker to end a stream that was given up, before it is cut. */
const ABORT_GRACE_MS = 1_000;

/** What a transfer tells its owner, as long as it is not ended. */
export interface TransferListener {
  /** The request reached the prefill worker. */
  heard(): void;
  ticket(ticket: RunTicket): void;
  firstToken(token: RunFirstToken): void;
  progress(progress: FetchResponse): void;
  /** Stream or fetch broke or ended before its time; `where` for people. */
  broken(error: unknown, where: string): void;
}

export interface TransferFacts {
  readonly peers: PrefillPeers;
  readonly prefill: WorkerRef;
  readonly transferId: Uint8Array;
  readonly kernel: Kernel;
  readonly metadata: Metadata;
  readonly start: Omit<MessageInitShape<typeof RunStartSchema>, "transferId" | "$typeName">;
}

/** One prefill worker's part in a hand-over: the stream to it, and the fetch from its sidecar. Nothing is told after `abort` or `received`. */
export class Transfer {
  readonly facts: TransferFacts;
  /** Of our own sidecar: every fetch has its own, so that an old one never stands for a new one. */
  readonly #fetchId = randomBytes(16);
  readonly #run: ReturnType<PrefillPeers["run"]>;
  readonly #listener: TransferListener;
  #fetch: ReturnType<Kernel["fetch"]> | undefined;
  #isOver = false;

  constructor(facts: TransferFacts, listener: TransferListener) {
    this.facts = facts;
    this.#listener = listener;
    const { peers, prefill, transferId, metadata, start } = facts;
    const where = `prefill worker ${prefill.workerId}`;
    const run = peers.run(prefill.address, { metadata });
    this.#run = run;
    run.on("metadata", () => {
      if (!this.#isOver) listener.heard();
    });
    run.on("data", ({ kind }: RunResponse) => {
      if (this.#isOver) return;
      if (kind.case === "ticket") listener.ticket(kind.value);
      else if (kind.case === "firstToken") listener.firstToken(kind.value);
    });
    run.on("error", (error) => this.#broken(error, where));
    run.on("end", () => this.#broken(ended("it ended the hand-over before its time"), where));
    run.write({ kind: { case: "start", value: { ...start, transferId } } });
  }

  /** Fetches the prompt's KV from `tokenBegin` on, a multiple of the block size. Where transfers share a link the nearest deadline goes first. */
  fetch(ticket: RunTicket, blockIds: readonly BlockId[], tokenBegin: number, deadlineMs: number): void {
    const { kernel, metadata, start } = this.facts;
    const fetch = kernel.fetch(
      {
        leaseId: this.#fetchId,
        ...(ticket.ticket ? { ticket: ticket.ticket } : {}),
        ...(ticket.source ? { source: ticket.source } : {}),
        blockIds: [...blockIds],
        tokenBegin,
        tokenEnd: start.promptTokenIds?.length ?? 0,
        tenantScope: start.tenantScope ?? new Uint8Array(),
        level: CodecLevel.RAW,
        deadlineMs,
      },
      metadata,
    );
    this.#fetch = fetch;
    let complete = false;
    fetch.on("data", (progress: FetchResponse) => {
      complete = progress.complete;
      if (!this.#isOver) this.#listener.progress(progress);
    });
    fetch.on("error", (error) => this.#broken(error, "the KV transfer"));
    fetch.on("end", () => {
      if (!complete) this.#broken(ended("it ended before its last block"), "the KV transfer");
    });
  }

  /** Every block is verified. Resolves when nothing writes. */
  received(): Promise<void> {
    return this.#end("received");
  }

  /** Nothing more is wanted. Resolves when nothing writes. */
  abort(): Promise<void> {
    return this.#end("aborted");
  }

  async #end(how: "received" | "aborted"): Promise<void> {
    if (!this.#isOver) {
      this.#isOver = true;
      this.#run.write({ kind: how === "received" ? { case: "received", value: {} } : { case: "aborted", value: {} } });
      this.#run.end();
      const cut = setTimeout(() => this.#run.cancel(), ABORT_GRACE_MS);
      this.#run.once("status", () => clearTimeout(cut));
      if (how === "aborted") this.#fetch?.cancel();
    }
    if (this.#fetch) await this.facts.kernel.fence(this.#fetchId);
  }

  #broken(error: unknown, where: string): void {
    if (!this.#isOver) this.#listener.broken(error, where);
  }
}

function ended(message: string): KvasirError {
  return new KvasirError({ reason: "unavailable", message: `${message}; retry elsewhere` });
}
