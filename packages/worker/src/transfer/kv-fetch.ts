import { randomBytes } from "node:crypto";
import type { Metadata } from "@grpc/grpc-js";
import { type BlockId, KvasirError, type LevelChoice, type TransferBook } from "@kvasir/core";
import type { FetchResponse, RunTicket } from "@kvasir/proto";
import { errorFromService } from "@kvasir/rpc";
import { now } from "../clock.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { addTraffic, type LevelBytes, type LevelTotals, trafficOf } from "./traffic.ts";

export interface KvFetchFacts {
  readonly kernel: Kernel;
  readonly metadata: Metadata;
  readonly book: TransferBook;
  readonly ticket: RunTicket;
  /** The prompt's, from its first token on. */
  readonly blockIds: readonly BlockId[];
  /** First token wanted; a multiple of the block size. */
  readonly tokenBegin: number;
  readonly tokenEnd: number;
  readonly tenantScope: Uint8Array;
  /** Where transfers share a link, the nearest goes first. */
  readonly deadlineMs: number;
  readonly levels: LevelPlan;
}

/** How the tokens of a fetch shall travel. */
export interface LevelPlan {
  /** Levels of all that is still to come from `tokenBegin` on; `isRawOnly`: the source has no other after all. */
  choose(tokenBegin: number, isRawOnly: boolean): LevelChoice;
  /** Where to choose anew, by what was measured meanwhile: at most here after `tokenBegin`. */
  reviewAt(tokenBegin: number): number;
}

/** How far a fetch is. */
export interface KvProgress {
  /** Tokens before this are verified and in place. */
  readonly verifiedTokenEnd: number;
  /** As they travelled. */
  readonly dataBytes: bigint;
  /** Without waiting for the source to compute. */
  readonly transferNanos: bigint;
  readonly complete: boolean;
  /** Of the tokens of this fetch, those that came at a lossy level; counted when their part of the fetch is asked for. */
  readonly approximateTokenCount: number;
  /** By the levels' names. */
  readonly levels: LevelTotals;
}

export interface KvFetchListener {
  progress(progress: KvProgress): void;
  broken(error: unknown): void;
  /** The source cannot have a level that was chosen; raw KV is asked for in its place. */
  fellBack(error: KvasirError): void;
}

/** Pulls a range of a prompt's KV through the own sidecar, at levels that the link, the deadline and the request's accuracy call for. */
export class KvFetch {
  /** Of our own sidecar: every fetch has its own, so that an old one never stands for a new one. */
  readonly #id = randomBytes(16);
  readonly #facts: KvFetchFacts;
  readonly #listener: KvFetchListener;
  readonly #peer: string;
  readonly #begunAt = performance.now();
  readonly #levels = new Map<string, LevelBytes>();
  #call: ReturnType<Kernel["fetch"]> | undefined;
  #isCancelled = false;
  #isRawOnly = false;
  #bytes = 0n;
  #nanos = 0n;
  #approximateTokenCount = 0;

  constructor(facts: KvFetchFacts, listener: KvFetchListener) {
    this.#facts = facts;
    this.#listener = listener;
    this.#peer = facts.ticket.source?.shardAddresses[0] ?? "";
    this.#open(facts.tokenBegin);
  }

  /** Nothing is told after it. */
  cancel(): void {
    this.#isCancelled = true;
    this.#call?.cancel();
  }

  /** Resolves when nothing writes. */
  async fence(): Promise<void> {
    await this.#facts.kernel.fence(this.#id);
  }

  #open(tokenBegin: number): void {
    const { kernel, metadata, ticket, blockIds, tokenEnd, tenantScope, levels, deadlineMs, book } = this.#facts;
    const choice = levels.choose(tokenBegin, this.#isRawOnly);
    const end = Math.min(tokenEnd, levels.reviewAt(tokenBegin));
    const spans = cut(choice, tokenBegin, end);
    const exactBefore = this.#approximateTokenCount;
    this.#approximateTokenCount += approximateCount(spans, tokenBegin);
    book.begin(this.#peer);
    const call = kernel.fetch(
      {
        leaseId: this.#id,
        ...(ticket.ticket ? { ticket: ticket.ticket } : {}),
        ...(ticket.source ? { source: ticket.source } : {}),
        blockIds: [...blockIds],
        ...{ tokenBegin, tokenEnd: end, tenantScope },
        levels: choice.profileId === undefined ? [] : spans.map(({ tokenEnd, level }) => ({ tokenEnd, level })),
        codecProfileId: choice.profileId === undefined ? new Uint8Array() : Buffer.from(choice.profileId, "hex"),
        deadlineMs: Math.max(1, Math.ceil(deadlineMs - this.#elapsedMs)),
      },
      metadata,
    );
    this.#call = call;
    let isOver = false;
    let last: FetchResponse | undefined;
    // An error is followed by an end. What was given up because it was slow tells of the link too.
    const isFirstEnd = () => {
      if (isOver) return false;
      isOver = true;
      if (last) book.observe(this.#peer, choice.profileId, trafficOf(last), Number(last.transferNanos) / 1e6, now());
      book.end(this.#peer);
      return true;
    };
    call.on("data", (progress: FetchResponse) => {
      if (isOver) return;
      last = progress;
      if (!progress.complete) {
        if (!this.#isCancelled) this.#tell(progress, false);
        return;
      }
      isFirstEnd();
      if (this.#isCancelled) return;
      addTraffic(this.#levels, progress, choice);
      this.#tell(progress, end === tokenEnd);
      this.#bytes += progress.dataBytes;
      this.#nanos += progress.transferNanos;
      if (end < tokenEnd && !this.#isCancelled) this.#open(end);
    });
    call.on("error", (error) => {
      if (!isFirstEnd() || this.#isCancelled) return;
      const known = errorFromService(error);
      if (known.reason !== "codec_mismatch" || choice.profileId === undefined) {
        this.#listener.broken(error);
        return;
      }
      this.#approximateTokenCount = exactBefore;
      this.#isRawOnly = true;
      this.#listener.fellBack(known);
      this.#open(tokenBegin);
    });
    call.on("end", () => {
      if (!isFirstEnd() || this.#isCancelled) return;
      const message = "it ended before its last block; retry elsewhere";
      this.#listener.broken(new KvasirError({ reason: "unavailable", message }));
    });
  }

  get #elapsedMs(): number {
    return performance.now() - this.#begunAt;
  }

  #tell({ verifiedTokenEnd, dataBytes, transferNanos }: FetchResponse, complete: boolean): void {
    this.#listener.progress({
      verifiedTokenEnd,
      dataBytes: this.#bytes + dataBytes,
      transferNanos: this.#nanos + transferNanos,
      complete,
      approximateTokenCount: this.#approximateTokenCount,
      levels: this.#levels,
    });
  }
}

/** The spans of a choice between two tokens. */
function cut({ spans }: LevelChoice, begin: number, end: number): LevelChoice["spans"] {
  const first = spans.findIndex(({ tokenEnd }) => tokenEnd > begin);
  const last = spans.findIndex(({ tokenEnd }) => tokenEnd >= end);
  return spans.slice(first, last + 1).map((span) => ({ ...span, tokenEnd: Math.min(span.tokenEnd, end) }));
}

function approximateCount(spans: LevelChoice["spans"], tokenBegin: number): number {
  let [begin, count] = [tokenBegin, 0];
  for (const { tokenEnd, isApproximate } of spans) {
    if (isApproximate) count += tokenEnd - begin;
    begin = tokenEnd;
  }
  return count;
}
