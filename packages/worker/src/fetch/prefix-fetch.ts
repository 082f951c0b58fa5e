import { create } from "@bufbuild/protobuf";
import type { Metadata } from "@grpc/grpc-js";
import {
  type BlockId,
  type Instant,
  type KvAccuracy,
  type KvasirError,
  type LoadAction,
  msFromNanos,
  PrefixLoad,
  prefillMs,
  type SequenceId,
  type TokenSpan,
  unreachable,
} from "@kvasir/core";
import { type PrefixFetch as FetchPlan, RunTicketSchema, type WorkerRef } from "@kvasir/proto";
import { errorFromService } from "@kvasir/rpc";
import { now } from "../clock.ts";
import type { Incarnation } from "../incarnation.ts";
import { KvFetch } from "../transfer/kv-fetch.ts";
import { levelSourceOf, oneLevel } from "../transfer/level-plan.ts";
import { type LevelTotals, sumOf } from "../transfer/traffic.ts";
import type { KvLoan, LentKv, LoanListener } from "./borrow.ts";
import { diskBlockCount, verifiedSpans } from "./verified-spans.ts";

/** Time in which a device that has computed nothing yet is believed to compute the range. */
const UNKNOWN_COMPUTE_MS = 2_000;
/** From the last KV to the first token, where neither steps nor that were ever measured. */
const UNKNOWN_TAIL_MS = 30;
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
  readonly promptTokenCount: number;
  /** Least exact KV that will do. */
  readonly accuracy: KvAccuracy;
  /** When the first token is wanted; undefined: as soon as possible. */
  readonly firstTokenBy: Instant | undefined;
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
interface Pull extends TokenSpan {
  readonly fetch: KvFetch;
  verifiedEnd: number;
  bytes: number;
  isApproximate: boolean;
  /** Once it is complete. */
  levels: LevelTotals;
}

/**
 * Fetches a part of a prompt from a holder while the device computes for others, or for the prompt's own front where that is quicker: runs a
 * `PrefixLoad`. Whatever ends it, what is verified by then stays.
 */
export class PrefixFetch {
  readonly #facts: FetchFacts;
  readonly #load: PrefixLoad;
  readonly #loan: KvLoan;
  /** By their first tokens. */
  readonly #pulls = new Map<number, Pull>();
  /** Pulls that are waited for no more and may still write, by their first tokens. */
  readonly #stopping = new Map<number, Promise<unknown>>();
  /** What was decided last of the tokens that begin there. */
  readonly #decisions = new Map<number, LoadAction>();
  readonly #timer: NodeJS.Timeout;
  readonly #beganAt = now();
  /** Of pulls that ended before their last block. */
  #lostBytes = 0;
  #lent: LentKv | undefined;
  /** Nothing beyond is lent. */
  #end: number;
  /** The device may compute up to here, and tells when it has. */
  #computeEnd: number | undefined;
  /** What the engine was told last. */
  #awaited: TokenSpan | undefined;
  #isEnding = false;
  /** When all was there, with nothing of it on the device. */
  #endedAt: Instant | undefined;

  constructor(facts: FetchFacts) {
    this.#facts = facts;
    const { incarnation, span, accuracy: budget } = facts;
    const { layout, description, transfers: book } = incarnation;
    this.#end = span.end;
    this.#load = new PrefixLoad({
      ...{ span, blockSize: layout.blockSize, bytesPerToken: description.kvBytesPerToken, budget, book },
      deadlineMs: this.#deadlineMs(),
      computeMsPerToken: () => this.#computeMsPerToken(),
    });
    this.#await(span.begin);
    this.#timer = setInterval(() => this.wake(), TICK_MS);
    this.#loan = facts.borrow({
      lent: (kv) => this.#lend(kv),
      broken: (error) => void this.#finish(errorFromService(error).reason),
    });
  }

  /** Nobody wants it any more. */
  stop(): void {
    void this.#finish("cancelled");
  }

  /** Something happened: the device computed some of the prompt, or a moment has passed. */
  wake(): void {
    if (this.#isEnding) return;
    const { incarnation, sequenceId } = this.#facts;
    const progress = incarnation.engine.scheduler.progressOf(sequenceId);
    if (progress === undefined) {
      void this.#finish("cancelled");
      return;
    }
    if (this.#computeEnd !== undefined && progress.plannedCount >= this.#computeEnd && !progress.isComputing) {
      this.#computeEnd = undefined;
      this.#load.computed();
    }
    for (let action = this.#load.next(this.#nowMs()); action !== undefined; action = this.#load.next(this.#nowMs())) {
      this.#perform(action);
      if (this.#isEnding) return;
    }
  }

  #nowMs(): number {
    return msFromNanos(now() - this.#beganAt);
  }

  #computeMsPerToken(): number {
    const { incarnation, span } = this.#facts;
    return incarnation.engine.meter.fearedPromptTokenMs ?? UNKNOWN_COMPUTE_MS / (span.end - span.begin);
  }

  /** Until the KV is wanted. Where a request allows errors and has no target, it shall come no later than computing would have it. */
  #deadlineMs(): number | undefined {
    const { incarnation, span, accuracy, firstTokenBy } = this.#facts;
    if (firstTokenBy === undefined) {
      return accuracy === "exact" ? undefined : (span.end - span.begin) * this.#computeMsPerToken();
    }
    const tailMs = this.#restMs() + (incarnation.fetchTails.feared ?? UNKNOWN_TAIL_MS);
    return Math.max(1, msFromNanos(firstTokenBy - now()) - tailMs);
  }

  /** To compute what is behind the span; 0 where nothing is known of steps. */
  #restMs(): number {
    const { incarnation, promptTokenCount } = this.#facts;
    const cost = incarnation.engine.meter.stepCost();
    const { tokenBudget } = incarnation.engine.scheduler.options;
    return cost === undefined ? 0 : prefillMs(cost, promptTokenCount, this.#end, tokenBudget);
  }

  /** The prompt's first token is there. What passed since all KV was, beside computing the rest, tells the next fetches how early theirs has to be. */
  firstToken(): void {
    if (this.#endedAt === undefined) return;
    this.#facts.incarnation.fetchTails.add(Math.max(0, msFromNanos(now() - this.#endedAt) - this.#restMs()));
  }

  #lend(kv: LentKv): void {
    const { incarnation, span } = this.#facts;
    const { exactFingerprint, blockSize } = incarnation.layout;
    const theirs = kv.source.layout?.exactFingerprint ?? new Uint8Array();
    // Other elements than those computed here would make the rest of the prompt approximate.
    if (Buffer.compare(theirs, exactFingerprint) !== 0) {
      void this.#finish("layout_mismatch");
      return;
    }
    const lentEnd = Math.min(this.#end, span.begin + kv.blockCount * blockSize);
    if (lentEnd <= (this.#computeEnd ?? this.#awaited?.begin ?? span.begin)) {
      void this.#finish("lease_expired");
      return;
    }
    this.#lent = kv;
    this.#end = lentEnd;
    this.#await(this.#awaited?.begin ?? span.begin);
    this.#load.lent(levelSourceOf(incarnation.layout, kv.source), lentEnd);
    this.wake();
  }

  #perform(action: LoadAction): void {
    switch (action.kind) {
      case "pull":
        this.#pull(action);
        break;
      case "pullDenser":
        this.#afterStop(action, () => this.#pull(action));
        break;
      case "takeBack":
        this.#afterStop(action, () => {
          this.#load.released(action.begin);
          this.#compute(action.end);
          this.wake();
        });
        break;
      case "compute":
        this.#compute(action.end);
        break;
      case "end":
        if (!this.#load.isLate && this.#computeEnd === undefined) this.#endedAt = now();
        void this.#finish(this.#load.isLate ? "late" : undefined);
        break;
      default:
        unreachable(action);
    }
  }

  #compute(end: number): void {
    // Then nothing is left to be fetched.
    if (end >= this.#end) {
      void this.#finish("late");
      return;
    }
    this.#computeEnd = end;
    this.#await(end);
  }

  /** The engine computes up to here at most, but for what has arrived before, and what is beyond the span. */
  #await(begin: number): void {
    const { incarnation, sequenceId } = this.#facts;
    const end = this.#end;
    if (this.#awaited?.begin === begin && this.#awaited.end === end) return;
    const planned = incarnation.engine.scheduler.progressOf(sequenceId)?.plannedCount ?? begin;
    const before = [...this.#pulls.values()].filter((pull) => pull.begin >= planned && pull.end <= begin);
    this.#awaited = { begin, end };
    incarnation.engine.apply({
      ...{ kind: "KvAwaited", sequenceId, span: this.#awaited },
      arrived: verifiedSpans(before, incarnation.layout.blockSize),
      isApproximate: before.some(({ isApproximate }) => isApproximate),
    });
  }

  #pull({ begin, end, level, profileId }: Extract<LoadAction, { kind: "pull" | "pullDenser" }>): void {
    const { incarnation, blockIds, tenantScope, metadata, fellBack } = this.#facts;
    if (this.#lent === undefined) return;
    const { kernel, transfers: book } = incarnation;
    const ticket = create(RunTicketSchema, { ticket: this.#lent.ticket, source: this.#lent.source });
    // What is left would take its time to compute: that is what fetching it should be quicker than.
    const computeMs = (this.#end - (this.#awaited?.begin ?? begin)) * this.#computeMsPerToken();
    const deadlineMs = Math.max(1, Math.ceil(Math.min(computeMs, WANTED_WITHIN_MAX_MS)));
    const levels = oneLevel(level, profileId, { tokenBegin: begin, tokenEnd: end });
    const span = { tokenBegin: begin, tokenEnd: end };
    const fetch = new KvFetch(
      { kernel, metadata, book, ticket, blockIds, tenantScope, deadlineMs, levels, ...span },
      {
        progress: ({ verifiedTokenEnd, dataBytes, complete, approximateTokenCount, levels }) => {
          if (this.#isEnding || this.#pulls.get(begin) !== pull) return;
          pull.isApproximate = approximateTokenCount > 0;
          pull.verifiedEnd = complete ? end : Math.max(pull.verifiedEnd, verifiedTokenEnd);
          pull.bytes = Number(dataBytes);
          this.#load.received(begin, pull.bytes, this.#nowMs());
          if (!complete) return;
          pull.levels = levels;
          this.#load.arrived(begin);
          this.wake();
        },
        fellBack: (error) => {
          this.#load.onlyRaw();
          fellBack(error);
        },
        broken: (error) => {
          if (this.#pulls.get(begin) === pull) void this.#finish(errorFromService(error).reason);
        },
      },
    );
    const pull: Pull = { begin, end, fetch, verifiedEnd: begin, bytes: 0, isApproximate: false, levels: new Map() };
    this.#pulls.set(begin, pull);
  }

  /** Once what was pulled there writes no more, unless something else was decided meanwhile. What it brought is lost. */
  #afterStop(action: Extract<LoadAction, { kind: "pullDenser" | "takeBack" }>, then: () => void): void {
    const { begin } = action;
    this.#decisions.set(begin, action);
    this.#stopPull(begin).then(
      () => {
        if (!this.#isEnding && this.#decisions.get(begin) === action) then();
      },
      (error: unknown) => void this.#finish(errorFromService(error).reason),
    );
  }

  /** Resolves when nothing writes there. */
  async #stopPull(begin: number): Promise<void> {
    const pull = this.#pulls.get(begin);
    if (pull !== undefined) {
      this.#pulls.delete(begin);
      this.#lostBytes += pull.bytes;
      pull.fetch.cancel();
      this.#stopping.set(begin, pull.fetch.fence());
    }
    await this.#stopping.get(begin);
  }

  async #finish(failure: string | undefined): Promise<void> {
    if (this.#isEnding) return;
    this.#isEnding = true;
    clearInterval(this.#timer);
    const { incarnation, sequenceId, span, ended } = this.#facts;
    const pulls = [...this.#pulls.values()];
    for (const { fetch } of pulls) fetch.cancel();
    // A sidecar that is gone writes nothing either.
    await Promise.allSettled([...pulls.map(({ fetch }) => fetch.fence()), ...this.#stopping.values()]);
    this.#loan.end();
    const { blockSize } = incarnation.layout;
    const spans = verifiedSpans(pulls, blockSize);
    const tokenCount = spans.reduce((count, { begin, end }) => count + end - begin, 0);
    const bytes = pulls.reduce((sum, pull) => sum + pull.bytes, this.#lostBytes);
    const lossy = pulls.filter(({ begin, verifiedEnd, isApproximate }) => isApproximate && verifiedEnd > begin);
    const approximateFrom = lossy.length === 0 ? undefined : Math.min(...lossy.map(({ begin }) => begin));
    const levels = sumOf(pulls.map((pull) => pull.levels));
    const diskTokenCount = diskBlockCount(spans, span.begin, this.#lent?.fromDisk ?? [], blockSize) * blockSize;
    ended({ tokenCount, diskTokenCount, bytes, levels, approximateFrom, failure });
    // What is before the awaited tokens was told when they began there.
    const awaitedFrom = this.#awaited?.begin ?? span.begin;
    const rest = verifiedSpans(
      pulls.filter(({ begin }) => begin >= awaitedFrom),
      blockSize,
    );
    incarnation.engine.apply({
      ...{ kind: "KvFetched", sequenceId, spans: rest, isApproximate: approximateFrom !== undefined },
    });
  }
}
