import { setTimeout as sleep } from "node:timers/promises";
import {
  type AttemptDecision,
  Attempts,
  hashBlocks,
  type Instant,
  KvasirError,
  msFromNanos,
  nanosBetween,
  nanosFromMs,
  prefixRoot,
  type RequestOutcome,
  RequestProgress,
} from "@kvasir/core";
import { type GenerateFinished, type Placement, PlacementMode } from "@kvasir/proto";
import { type Attempt, failSpan, linkToFailed, startAttempt } from "@kvasir/telemetry";
import type { Attributes } from "@opentelemetry/api";
import type { PreparedRequest } from "../prepare.ts";
import type { DecodeClients } from "./decode-clients.ts";
import { generateAt, WIRE_ACCURACIES } from "./generate-at.ts";
import { deadlineMs, type GenerationContext, type Sink, ttftLeftMs } from "./generation-context.ts";
import { peerError } from "./peer-error.ts";
import type { PlaceLine, PlaceStart, PromptHashes, RouterLink } from "./router-link.ts";
import { TokenGaps } from "./token-gaps.ts";
import { TransferKeeper } from "./transfer-keeper.ts";

const FRUITLESS_MAX = 3;
/** Longest wait of a new request for a router. Larger: rides out slower take-overs; smaller: clients learn sooner that there is none. */
const ROUTER_WAIT_MS = 10_000;
/** Between two questions to routers of which none answers. */
const ROUTER_PAUSE_MS = 100;

export interface Upstream {
  readonly router: RouterLink;
  readonly decode: DecodeClients;
}

export interface GenerationEnd {
  /** The last one. */
  readonly placement: Placement;
  /** Absent when the gateway stopped the generation itself. */
  readonly finished: GenerateFinished | undefined;
  readonly placementCount: number;
  /** Losses after the first token that the client did not notice. */
  readonly resumeCount: number;
}

/**
 * Owns a request from its first placement to its last token. When a worker is lost, fails in a way that another one might not, or is silent
 * for too long, the request is placed again without it and goes on after the last token that the client has: the random number of a token
 * depends on (seed, index) only, and the new worker is told the output so far, so the answer is the one that would have come. What is
 * bounded is told at `Attempts`. However it ends, both streams are closed.
 */
export async function generate(
  upstream: Upstream,
  request: PreparedRequest,
  facts: GenerationContext,
  sink: Sink,
): Promise<GenerationEnd> {
  const placing = new Placing(upstream.router, request, facts);
  const progress = new RequestProgress(request.choiceCount, request.sampling.maxTokens);
  const attempts = new Attempts({ fruitlessMax: FRUITLESS_MAX, placeWithin: nanosFromMs(facts.resumeTimeoutMs) });
  const keeper = new TransferKeeper();
  const gaps = new TokenGaps();
  let resumeCount = 0;
  try {
    let placement = await placing.first();
    for (let placementCount = 1; ; placementCount++) {
      const before = progress.tokenCount;
      sink.placed(placement);
      const counted: Sink = {
        placed: () => undefined,
        tokens(tokens, choice) {
          placing.firstToken();
          gaps.tokens(choice, tokens.length, performance.now());
          return sink.tokens(tokens, choice);
        },
        // What a later attempt finds may be what an earlier one computed: for this request it was not cached.
        cached: (cached) => placementCount === 1 && sink.cached(cached),
        ended: (choice, finish, byStopString) => sink.ended(choice, finish, byStopString),
      };
      const attempt = startAttempt(facts.tracer, facts.context, attemptAttributes(placement, placementCount));
      const at = { ...facts, context: attempt.context };
      try {
        const transfer = keeper.choose(placement);
        const finished = await generateAt(upstream.decode, placement, request, progress, transfer, at, counted);
        attempt.end();
        placing.finished({ outputTokenCount: progress.tokenCount, tbtMs: gaps.meanMs });
        return { placement, finished, placementCount, resumeCount };
      } catch (error) {
        attempt.end(facts.signal.aborted ? facts.signal.reason : peerError(error));
        if (facts.signal.aborted) throw facts.signal.reason;
        for (const choice of progress.complete()) {
          progress.end(choice);
          sink.ended(choice, "length", false);
        }
        if (progress.isOver) return { placement, finished: undefined, placementCount, resumeCount };
        const failure = peerError(error);
        const newTokenCount = progress.tokenCount - before;
        const decodeWorkerId = placement.decode?.workerId ?? "";
        const decision = attempts.failed({ decodeWorkerId, newTokenCount, error: failure }, nowInstant());
        if (decision.kind === "give_up") throw failure;
        if (progress.tokenCount > 0) resumeCount++;
        keeper.failed(error, progress.tokenCount);
        const known = { failedWorkerIds: attempts.failedWorkerIds, keptPrefillWorkerId: keeper.keptPrefillWorkerId };
        placement = await placing.again(decision, known, failure, attempt, progress.tokenCount);
      }
    }
  } finally {
    placing.close();
  }
}

function attemptAttributes(placement: Placement, attempt: number): Attributes {
  const isSplit = placement.mode === PlacementMode.SPLIT;
  return {
    "kvasir.attempt": attempt,
    "kvasir.mode": isSplit ? "split" : "aggregated",
    ...(isSplit ? { "kvasir.prefill_worker": placement.prefill?.workerId ?? "" } : {}),
    "kvasir.decode_worker": placement.decode?.workerId ?? "",
  };
}

/** The request's side of its placements: one line to a router at a time, another one when that is lost. */
class Placing {
  readonly #router: RouterLink;
  readonly #start: PlaceStart;
  readonly #facts: GenerationContext;
  #line: PlaceLine | undefined;
  #toldFirstToken = false;
  readonly #promptTokenIds: readonly number[];
  /** As of the last look at the cluster: a rolling upgrade brings another layout. */
  #hashed: { readonly layouts: string; readonly promptHashes: readonly PromptHashes[] } | undefined;

  constructor(router: RouterLink, request: PreparedRequest, facts: GenerationContext) {
    this.#router = router;
    this.#facts = facts;
    const { objectives, ...wishes } = facts.wishes;
    this.#start = {
      requestId: facts.requestId,
      model: facts.model,
      promptTokenCount: request.promptTokenIds.length,
      maxTokens: request.sampling.maxTokens,
      choiceCount: request.choiceCount,
      tenantScope: facts.tenantScope,
      ttftTargetMs: 0,
      ...wishes,
      tbtTargetMs: objectives.tpotMs,
      mayBeLate: objectives.mayBeLate,
      kvAccuracy: WIRE_ACCURACIES[request.kvAccuracy],
      excludedWorkerIds: [],
      promptHashes: [],
    };
    this.#promptTokenIds = request.promptTokenIds;
  }

  /** The first placement. A router that goes away before it answers is no answer: its successor is waited for. */
  async first(): Promise<Placement> {
    const { signal, resumeTimeoutMs } = this.#facts;
    const until = performance.now() + Math.min(ROUTER_WAIT_MS, resumeTimeoutMs);
    for (;;) {
      let line: PlaceLine | undefined;
      try {
        line = this.#open([]);
        return await this.#next(line, signal);
      } catch (error) {
        const why = peerError(error);
        // A router that refuses says when to come back.
        const isLost = why.reason === "unavailable" && (why.retryAfterMs === 0 || line === undefined);
        if (signal.aborted || !isLost || performance.now() >= until) throw error;
        await sleep(ROUTER_PAUSE_MS);
      }
    }
  }

  /** Another placement, within the time that the decision gives, however many routers are lost meanwhile. */
  async again(
    { failedWorkerId, placeBy }: Extract<AttemptDecision, { readonly kind: "place_again" }>,
    known: { readonly failedWorkerIds: readonly string[]; readonly keptPrefillWorkerId: string },
    failure: Error,
    attempt: Attempt,
    tokenCount: number,
  ): Promise<Placement> {
    const { context, tracer, signal } = this.#facts;
    const attributes = {
      "kvasir.failed_worker": failedWorkerId,
      "kvasir.failure": failure.message,
      "kvasir.resumed_tokens": tokenCount,
    };
    const options = { attributes, links: [linkToFailed(attempt)] };
    const span = tracer.startSpan(tokenCount > 0 ? "resume" : "replace", options, context);
    const late = new AbortController();
    const timer = setTimeout(
      () => {
        const message = `no placement within ${this.#facts.resumeTimeoutMs} ms of the loss of ${failedWorkerId}; ${failure.message}`;
        late.abort(new KvasirError({ reason: "unavailable", message }));
      },
      msFromNanos(nanosBetween(nowInstant(), placeBy)),
    );
    try {
      for (;;) {
        try {
          let line = this.#line;
          if (line === undefined || line.isOver) line = this.#open(known.failedWorkerIds);
          else line.retry([failedWorkerId], known.keptPrefillWorkerId);
          const placement = await this.#next(line, AbortSignal.any([signal, late.signal]));
          span.setAttribute("kvasir.decode_worker", placement.decode?.workerId ?? "");
          return placement;
        } catch (error) {
          if (signal.aborted) throw signal.reason;
          const why = peerError(error);
          if (why.reason !== "unavailable" || late.signal.aborted) throw why;
          await sleep(ROUTER_PAUSE_MS);
        }
      }
    } catch (error) {
      failSpan(span, error);
      throw error;
    } finally {
      clearTimeout(timer);
      span.end();
    }
  }

  firstToken(): void {
    if (this.#toldFirstToken) return;
    this.#toldFirstToken = true;
    this.#line?.firstToken();
  }

  finished(outcome: RequestOutcome): void {
    this.#line?.finished(outcome);
  }

  close(): void {
    this.#line?.close();
  }

  #open(excludedWorkerIds: readonly string[]): PlaceLine {
    this.#line?.close();
    this.#line = this.#router.place(
      {
        ...this.#start,
        ttftTargetMs: ttftLeftMs(this.#facts),
        excludedWorkerIds,
        promptHashes: this.#promptHashes(),
      },
      this.#facts.context,
      deadlineMs(this.#facts),
    );
    return this.#line;
  }

  #promptHashes(): readonly PromptHashes[] {
    const { model, tenantScope } = this.#facts;
    const known = this.#router.layoutsOf(model);
    const layouts = known
      .map(({ exactFingerprint, blockSize }) => `${Buffer.from(exactFingerprint).toString("hex")} ${blockSize}`)
      .join();
    if (this.#hashed?.layouts === layouts) return this.#hashed.promptHashes;
    const promptHashes = known.map(({ exactFingerprint, blockSize }) => {
      const root = prefixRoot({ tenantScope, fingerprint: exactFingerprint }, blockSize);
      return { exactFingerprint, blockSize, hashes: hashBlocks(root, this.#promptTokenIds, blockSize) };
    });
    this.#hashed = { layouts, promptHashes };
    return promptHashes;
  }

  #next(line: PlaceLine, signal: AbortSignal): Promise<Placement> {
    this.#toldFirstToken = false;
    return untilAborted(line.next(), signal);
  }
}

function nowInstant(): Instant {
  return Math.round(performance.now() * 1e6) as Instant;
}

function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}
