import { isRetryable, KvasirError } from "@kvasir/core";
import {
  FinishReason,
  type GenerateFinished,
  type GenerateResponse,
  type Placement,
  PlacementMode,
  type SampledToken,
} from "@kvasir/proto";
import { metadataFromContext } from "@kvasir/rpc";
import type { Context } from "@opentelemetry/api";
import type { PreparedRequest } from "../prepare.ts";
import type { DecodeClients } from "./decode-clients.ts";
import { peerError } from "./peer-error.ts";
import type { PlaceLine, RouterLink } from "./router-link.ts";

const PLACEMENTS_MAX = 3;
/** Peers learn the deadline a little late, so that the gateway's own message about it comes first. */
const DEADLINE_MARGIN_MS = 1_000;

export interface Upstream {
  readonly router: RouterLink;
  readonly decode: DecodeClients;
}

/** What a request needs beside its prompt. */
export interface GenerationContext {
  readonly requestId: string;
  readonly model: string;
  readonly tenantScope: Uint8Array;
  /** Trace context of the request's span. */
  readonly context: Context;
  /** When the request's time is over, on the clock of `performance.now()`. */
  readonly expiresAtMs: number;
  /** The client went away, or the request's time is over; `reason` is then a `KvasirError`. */
  readonly signal: AbortSignal;
  /** Longest silence once a worker has accepted. */
  readonly stallTimeoutMs: number;
}

export type SinkAnswer =
  | "more"
  /** The client reads too slowly: stop reading from the worker until the promise resolves. */
  | Promise<void>
  /** Enough of this answer: a stop string was found. */
  | "enough";

export type Finish = "stop" | "length";

/** What the caller does with what comes; `ended` once for each answer. */
export interface Sink {
  tokens(tokens: readonly SampledToken[], choice: number): SinkAnswer;
  ended(choice: number, finish: Finish, byStopString: boolean): void;
}

export interface GenerationEnd {
  readonly placement: Placement;
  /** Absent when the gateway stopped the generation itself. */
  readonly finished: GenerateFinished | undefined;
  readonly placementCount: number;
}

/**
 * Places a request and generates. Before the first token a retryable failure is answered with another placement, at most three in all;
 * after it the failure is the caller's to tell. However it ends, both streams are closed.
 */
export async function generate(
  upstream: Upstream,
  request: PreparedRequest,
  facts: GenerationContext,
  sink: Sink,
): Promise<GenerationEnd> {
  const start = {
    requestId: facts.requestId,
    model: facts.model,
    promptTokenCount: request.promptTokenIds.length,
    maxTokens: request.sampling.maxTokens,
    choiceCount: request.choiceCount,
    tenantScope: facts.tenantScope,
  };
  let line = upstream.router.place(start, facts.context, deadlineMs(facts));
  let tokenCount = 0;
  const counted: Sink = {
    tokens(tokens, choice) {
      if (tokenCount === 0) line.firstToken();
      tokenCount += tokens.length;
      return sink.tokens(tokens, choice);
    },
    ended: (choice, finish, byStopString) => sink.ended(choice, finish, byStopString),
  };
  try {
    const excluded = new Set<string>();
    for (let placementCount = 1; ; placementCount++) {
      const placement = await untilAborted(line.next(), facts.signal);
      try {
        const end = await generateAt(upstream, placement, request, facts, counted);
        return { ...end, placement, placementCount };
      } catch (error) {
        const failure = peerError(error);
        const again = tokenCount === 0 && isRetryable(failure.reason) && placementCount < PLACEMENTS_MAX;
        if (facts.signal.aborted) throw facts.signal.reason;
        if (!again) throw failure;
        if (line.isOver) line = upstream.router.place(start, facts.context, deadlineMs(facts));
        else retry(line, placement, excluded);
      }
    }
  } finally {
    line.close();
  }
}

function retry(line: PlaceLine, placement: Placement, excluded: Set<string>): void {
  if (placement.decode) excluded.add(placement.decode.workerId);
  if (placement.prefill && placement.mode === PlacementMode.SPLIT) excluded.add(placement.prefill.workerId);
  line.retry([...excluded]);
}

function generateAt(
  upstream: Upstream,
  placement: Placement,
  request: PreparedRequest,
  facts: GenerationContext,
  sink: Sink,
): Promise<Pick<GenerationEnd, "finished">> {
  return new Promise((resolve, reject) => {
    const address = placement.decode?.address;
    if (address === undefined) {
      reject(new KvasirError({ reason: "internal", message: "the router placed a request without a decode worker" }));
      return;
    }
    const { sampling } = request;
    const call = upstream.decode.at(address).generate(
      {
        requestId: facts.requestId,
        promptTokenIds: request.promptTokenIds as number[],
        sampling: { ...sampling, stopTokenIds: sampling.stopTokenIds as number[] },
        placement,
        tenantScope: facts.tenantScope,
        choiceCount: request.choiceCount,
      },
      { metadata: metadataFromContext(facts.context), deadlineMs: deadlineMs(facts) },
    );
    let last = performance.now();
    let paused = false;
    const open = new Set(Array.from({ length: request.choiceCount }, (_, index) => index));
    let isCut = false;
    const end = (choice: number, reason: FinishReason) => {
      if (open.delete(choice)) sink.ended(choice, reason === FinishReason.STOP ? "stop" : "length", false);
    };
    const watchdog = setInterval(
      () => {
        const silent = performance.now() - last;
        if (paused || silent < facts.stallTimeoutMs) return;
        const message = `the worker sent nothing for ${Math.round(silent)} ms; try again`;
        settle(() => reject(new KvasirError({ reason: "deadline_exceeded", message })));
      },
      Math.min(1_000, facts.stallTimeoutMs),
    );
    const abort = () => settle(() => reject(facts.signal.reason));
    let settled = false;
    function settle(then: () => void): void {
      if (settled) return;
      settled = true;
      clearInterval(watchdog);
      facts.signal.removeEventListener("abort", abort);
      call.cancel();
      then();
    }
    if (facts.signal.aborted) {
      call.on("error", () => undefined);
      abort();
      return;
    }
    facts.signal.addEventListener("abort", abort, { once: true });
    call.on("error", (error) => settle(() => reject(error)));
    call.on("end", () => {
      const message = "the worker ended the stream without a result";
      settle(() => reject(new KvasirError({ reason: "unavailable", message })));
    });
    call.on("data", (response: GenerateResponse) => {
      if (settled) return;
      last = performance.now();
      const { kind } = response;
      if (kind.case === "tokens") {
        const { tokens, choiceIndex } = kind.value;
        // An answer that a stop string ended goes on at the worker until the last of its siblings has ended.
        if (!open.has(choiceIndex)) return;
        const answer = sink.tokens(tokens, choiceIndex);
        if (answer === "enough") {
          open.delete(choiceIndex);
          isCut = true;
          sink.ended(choiceIndex, "stop", true);
          if (open.size === 0) settle(() => resolve({ finished: undefined }));
        } else if (answer !== "more") {
          paused = true;
          call.pause();
          void answer.then(() => {
            paused = false;
            last = performance.now();
            call.resume();
          });
        }
      } else if (kind.case === "choiceFinished") {
        end(kind.value.choiceIndex, kind.value.reason);
        if (isCut && open.size === 0) settle(() => resolve({ finished: undefined }));
      } else if (kind.case === "finished") {
        const finished = kind.value;
        end(0, finished.reason);
        settle(() => resolve({ finished }));
      }
    });
  });
}

function deadlineMs(facts: GenerationContext): number {
  return Math.max(1, facts.expiresAtMs - performance.now()) + DEADLINE_MARGIN_MS;
}

function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}
