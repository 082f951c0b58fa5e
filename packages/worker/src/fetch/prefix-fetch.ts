import { create } from "@bufbuild/protobuf";
import type { Metadata } from "@grpc/grpc-js";
import {
  type BlockId,
  decideFetch,
  type FetchLimits,
  type Instant,
  type KvAccuracy,
  type KvasirError,
  msFromNanos,
  type SequenceId,
  type TokenSpan,
} from "@kvasir/core";
import { type PrefixFetch as FetchPlan, RunTicketSchema, type WorkerRef } from "@kvasir/proto";
import { errorFromService } from "@kvasir/rpc";
import { now } from "../clock.ts";
import type { Incarnation } from "../incarnation.ts";
import { KvFetch } from "../transfer/kv-fetch.ts";
import { type LevelTotals, sumOf } from "../transfer/traffic.ts";
import type { KvLoan, LentKv, LoanListener } from "./borrow.ts";
import { diskBlockCount, verifiedSpans } from "./verified-spans.ts";

/** See `FetchLimits`. */
const CHUNK_TOKENS = 256;
const OPEN_CHUNKS_MAX = 2;
const GRACE_MS = 30;
/** Time in which a device that has computed nothing yet is believed to compute the range. */
const UNKNOWN_COMPUTE_MS = 2_000;
/** Between two looks at a fetch of which nothing is heard. Larger: silence is noticed later. */
const TICK_MS = 10;
/** Longest time for KV, as its source is told it, to put transfers in their order. */
const WANTED_WITHIN_MAX_MS = 60_000;

/** How a fetch ended, once nothing writes into the blocks any more. */
export interface FetchEnd {
  /** Fetched, and so not computed. */
  readonly tokenCount: number;
  /** Of them, what a store read from a disk. */
  readonly diskTokenCount: number;
  readonly bytes: number;
  /** Of its complete calls. */
  readonly levels: LevelTotals;
  /** First token that came at a lossy level: it and all after it are approximate. Undefined: all is exact. */
  readonly approximateFrom: number | undefined;
  /** `late`: computing is quicker. Otherwise the reason of the error; undefined when nothing was missing in the end. */
  readonly failure: string | undefined;
}

export interface FetchFacts {
  readonly incarnation: Incarnation;
  /** Whose prompt it is; admitted, and none of the span planned. */
  readonly sequenceId: SequenceId;
  /** The prompt's, in order. */
  readonly blockIds: readonly BlockId[];
  readonly tenantScope: Uint8Array;
  readonly span: TokenSpan;
  /** Least exact KV that will do. */
  readonly accuracy: KvAccuracy;
  readonly borrow: (listener: LoanListener) => KvLoan;
  readonly metadata: Metadata;
  /** A level could not be had; raw KV comes in its place. */
  readonly fellBack: (error: KvasirError) => void;
  /** Told before the engine goes on with what came. */
  readonly ended: (end: FetchEnd) => void;
}

/** The part of a plan that is worth a call: whole blocks beyond what is cached here, and not the prompt's last token. */
export function fetchSpan(
  plan: FetchPlan | undefined,
  facts: { readonly promptTokenCount: number; readonly cachedTokenCount: number; readonly blockSize: number },
): (TokenSpan & { readonly holder: WorkerRef; readonly fromStore: boolean }) | undefined {
  if (plan?.holder === undefined) return undefined;
  const { holder, fromStore } = plan;
  const { promptTokenCount, cachedTokenCount, blockSize } = facts;
  const wanted = Math.min(plan.tokenEnd, promptTokenCount - 1);
  const end = wanted - (wanted % blockSize);
  const begin = Math.ceil(cachedTokenCount / blockSize) * blockSize;
  return end > begin ? { holder, fromStore, begin, end } : undefined;
}

/** One call for some of the tokens. */
interface Chunk extends TokenSpan {
  readonly pull: KvFetch;
  verifiedEnd: number;
  bytes: number;
  isApproximate: boolean;
  /** Once it is complete. */
  levels: LevelTotals;
}

/**
 * Fetches a part of a prompt from a holder while the device computes for others, or for the prompt's own front where that is quicker: runs
 * `decideFetch`. Whatever ends it, what is verified by then stays.
 */
export class PrefixFetch {
  readonly #facts: FetchFacts;
  readonly #limits: FetchLimits;
  readonly #loan: KvLoan;
  readonly #chunks: Chunk[] = [];
  readonly #timer: NodeJS.Timeout;
  readonly #beganAt = now();
  #heardAt: Instant = this.#beganAt;
  #lent: LentKv | undefined;
  /** Nothing below was asked for; nothing beyond the span's end as it is lent. */
  #askedFrom: number;
  #end: number;
  /** What the engine was told last. */
  #awaited: TokenSpan | undefined;
  #isEnding = false;

  constructor(facts: FetchFacts) {
    this.#facts = facts;
    const { incarnation, span } = facts;
    const { blockSize } = incarnation.layout;
    this.#limits = { blockSize, chunkTokenCount: CHUNK_TOKENS, openChunkMax: OPEN_CHUNKS_MAX, graceMs: GRACE_MS };
    this.#askedFrom = span.end;
    this.#end = span.end;
    this.#await(span.begin);
    this.#timer = setInterval(() => this.#decide(), TICK_MS);
    this.#loan = facts.borrow({
      lent: (kv) => this.#lend(kv),
      broken: (error) => void this.#finish(errorFromService(error).reason),
    });
  }

  /** Nobody wants it any more. */
  stop(): void {
    void this.#finish("cancelled");
  }

  #lend(kv: LentKv): void {
    const { exactFingerprint, blockSize } = this.#facts.incarnation.layout;
    const theirs = kv.source.layout?.exactFingerprint ?? new Uint8Array();
    // Other elements than those computed here would make the rest of the prompt approximate.
    if (Buffer.compare(theirs, exactFingerprint) !== 0) {
      void this.#finish("layout_mismatch");
      return;
    }
    const lentEnd = Math.min(this.#end, this.#facts.span.begin + kv.blockCount * blockSize);
    if (lentEnd <= this.#front()) {
      void this.#finish("lease_expired");
      return;
    }
    this.#lent = kv;
    this.#askedFrom = this.#end = lentEnd;
    this.#heard();
  }

  /** First token, on a block, that the engine has not planned; beyond the span when the sequence has ended. */
  #front(): number {
    const { incarnation, sequenceId } = this.#facts;
    const { blockSize } = incarnation.layout;
    const planned = incarnation.engine.scheduler.plannedCount(sequenceId) ?? Number.POSITIVE_INFINITY;
    return Math.ceil(planned / blockSize) * blockSize;
  }

  #heard(): void {
    this.#heardAt = now();
    this.#decide();
  }

  #decide(): void {
    if (this.#isEnding) return;
    const { incarnation, span } = this.#facts;
    const { blockSize } = this.#limits;
    const front = this.#front();
    const open = this.#chunks.filter((chunk) => chunk.verifiedEnd < chunk.end);
    if (this.#lent !== undefined && open.length === 0 && this.#askedFrom <= front) {
      void this.#finish(undefined);
      return;
    }
    const at = now();
    const measured = incarnation.engine.meter.prefillTokensPerSecond / 1_000;
    const computeTokensPerMs = measured > 0 ? measured : (span.end - span.begin) / UNKNOWN_COMPUTE_MS;
    const { next, computeEnd, givesUp } = decideFetch(
      {
        plannedCount: front,
        askedFrom: this.#askedFrom,
        openTokenCount: open.reduce((count, chunk) => count + chunk.end - chunk.verifiedEnd, 0),
        openChunkCount: open.length,
        verifiedTokenCount: this.#chunks.reduce((count, chunk) => count + chunk.verifiedEnd - chunk.begin, 0),
        isLent: this.#lent !== undefined,
        elapsedMs: msFromNanos(at - this.#beganAt),
        quietMs: msFromNanos(at - this.#heardAt),
        computeTokensPerMs,
      },
      this.#limits,
    );
    if (givesUp) {
      void this.#finish("late");
      return;
    }
    this.#await(Math.min(computeEnd, this.#end - blockSize));
    if (next === undefined) return;
    this.#ask(next, front, computeTokensPerMs);
    this.#decide();
  }

  /** The engine computes up to here at most, and what is beyond the span. */
  #await(begin: number): void {
    const { incarnation, sequenceId } = this.#facts;
    const end = this.#end;
    if (this.#awaited?.begin === begin && this.#awaited.end === end) return;
    this.#awaited = { begin, end };
    incarnation.engine.apply({ kind: "KvAwaited", sequenceId, span: this.#awaited });
  }

  /** What is left from `front` on would take its time to compute: that is what fetching it should be quicker than. */
  #ask({ begin, end }: TokenSpan, front: number, computeTokensPerMs: number): void {
    const { incarnation, blockIds, tenantScope, metadata, accuracy, fellBack } = this.#facts;
    if (this.#lent === undefined) return;
    const { kernel, layout, description, transfers: book } = incarnation;
    const ticket = create(RunTicketSchema, { ticket: this.#lent.ticket, source: this.#lent.source });
    const deadlineMs = Math.ceil(Math.min((this.#end - front) / computeTokensPerMs, WANTED_WITHIN_MAX_MS));
    const wantedMs = (end - front) / computeTokensPerMs;
    const pull = new KvFetch(
      {
        ...{ kernel, metadata, layout, description, book, ticket, blockIds, tenantScope, deadlineMs },
        ...{ tokenBegin: begin, tokenEnd: end, remainsFrom: Math.min(begin, front), accuracy, wantedMs },
      },
      {
        progress: ({ verifiedTokenEnd, dataBytes, complete, approximateTokenCount, levels }) => {
          if (this.#isEnding) return;
          chunk.isApproximate = approximateTokenCount > 0;
          if (complete) chunk.levels = levels;
          chunk.verifiedEnd = complete ? end : Math.max(chunk.verifiedEnd, verifiedTokenEnd);
          chunk.bytes = Number(dataBytes);
          this.#heard();
        },
        fellBack,
        broken: (error) => void this.#finish(errorFromService(error).reason),
      },
    );
    const chunk: Chunk = { begin, end, pull, verifiedEnd: begin, bytes: 0, isApproximate: false, levels: new Map() };
    this.#askedFrom = begin;
    this.#chunks.push(chunk);
  }

  async #finish(failure: string | undefined): Promise<void> {
    if (this.#isEnding) return;
    this.#isEnding = true;
    clearInterval(this.#timer);
    const { incarnation, sequenceId, span, ended } = this.#facts;
    for (const { pull } of this.#chunks) pull.cancel();
    // A sidecar that is gone writes nothing either.
    await Promise.all(this.#chunks.map(({ pull }) => pull.fence().catch(() => undefined)));
    this.#loan.end();
    const { blockSize } = this.#limits;
    const spans = verifiedSpans(this.#chunks, blockSize);
    const tokenCount = spans.reduce((count, { begin, end }) => count + end - begin, 0);
    const bytes = this.#chunks.reduce((sum, chunk) => sum + chunk.bytes, 0);
    const lossy = this.#chunks.filter(({ begin, verifiedEnd, isApproximate }) => isApproximate && verifiedEnd > begin);
    const approximateFrom = lossy.length === 0 ? undefined : Math.min(...lossy.map(({ begin }) => begin));
    const levels = sumOf(this.#chunks.map((chunk) => chunk.levels));
    const diskTokenCount = diskBlockCount(spans, span.begin, this.#lent?.fromDisk ?? [], blockSize) * blockSize;
    ended({ tokenCount, diskTokenCount, bytes, levels, approximateFrom, failure });
    incarnation.engine.apply({ kind: "KvFetched", sequenceId, spans, isApproximate: approximateFrom !== undefined });
  }
}
