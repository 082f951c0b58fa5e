import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Metadata } from "@grpc/grpc-js";
import { type BlockId, type KvAccuracy, KvasirError } from "@kvasir/core";
import type { RunFirstToken, RunResponse, RunStartSchema, RunTicket, WorkerRef } from "@kvasir/proto";
import type { Incarnation } from "../incarnation.ts";
import { KvFetch, type KvProgress } from "../transfer/kv-fetch.ts";
import { levelSourceOf, plannedLevels } from "../transfer/level-plan.ts";
import type { PrefillPeers } from "./peers.ts";

/** Time for a prefill worker to end a stream that was given up, before it is cut. */
const ABORT_GRACE_MS = 1_000;

/** What a transfer tells its owner, as long as it is not ended. */
export interface TransferListener {
  /** The request reached the prefill worker. */
  heard(): void;
  ticket(ticket: RunTicket): void;
  firstToken(token: RunFirstToken): void;
  progress(progress: KvProgress): void;
  /** A level could not be had; raw KV comes in its place. */
  fellBack(error: KvasirError): void;
  /** Stream or fetch broke or ended before its time; `where` for people. */
  broken(error: unknown, where: string): void;
}

/** What is wanted of a fetch. */
export interface KvWish {
  /** Least exact KV that will do. */
  readonly accuracy: KvAccuracy;
  /** Where transfers share a link the nearest deadline goes first. */
  readonly deadlineMs: number;
  /** By when the KV should be there; undefined: as soon as possible. */
  readonly wantedMs: number | undefined;
}

export interface TransferFacts {
  readonly peers: PrefillPeers;
  readonly prefill: WorkerRef;
  readonly transferId: Uint8Array;
  readonly incarnation: Incarnation;
  readonly metadata: Metadata;
  readonly start: Omit<MessageInitShape<typeof RunStartSchema>, "transferId" | "$typeName">;
}

/** One prefill worker's part in a hand-over: the stream to it, and the fetch from its sidecar. Nothing is told after `abort` or `received`. */
export class Transfer {
  readonly facts: TransferFacts;
  readonly #run: ReturnType<PrefillPeers["run"]>;
  readonly #listener: TransferListener;
  #fetch: KvFetch | undefined;
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

  /** Fetches the prompt's KV from `tokenBegin` on, a multiple of the block size. */
  fetch(ticket: RunTicket, blockIds: readonly BlockId[], tokenBegin: number, wish: KvWish): void {
    const { incarnation, metadata, start } = this.facts;
    const { kernel, layout, description, transfers: book } = incarnation;
    const tokenEnd = start.promptTokenIds?.length ?? 0;
    const tenantScope = start.tenantScope ?? new Uint8Array();
    const { deadlineMs, ...wanted } = wish;
    const source = levelSourceOf(layout, ticket.source);
    const bytesPerToken = description.kvBytesPerToken;
    const levels = plannedLevels({ book, source, tokenEnd, bytesPerToken, ...wanted });
    this.#fetch = new KvFetch(
      { kernel, metadata, book, ticket, blockIds, tokenBegin, tokenEnd, tenantScope, deadlineMs, levels },
      {
        progress: (progress) => {
          if (!this.#isOver) this.#listener.progress(progress);
        },
        fellBack: (error) => {
          if (!this.#isOver) this.#listener.fellBack(error);
        },
        broken: (error) => this.#broken(error, "the KV transfer"),
      },
    );
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
    await this.#fetch?.fence();
  }

  #broken(error: unknown, where: string): void {
    if (!this.#isOver) this.#listener.broken(error, where);
  }
}

function ended(message: string): KvasirError {
  return new KvasirError({ reason: "unavailable", message: `${message}; retry elsewhere` });
}
