import type { CachedTokens, Placement, SampledToken } from "@kvasir/proto";
import type { Context, Tracer } from "@opentelemetry/api";
import type { PlacementWishes } from "../placement-wishes.ts";

/** Peers learn the deadline a little late, so that the gateway's own message about it comes first. */
const DEADLINE_MARGIN_MS = 1_000;

/** What a request needs beside its prompt. */
export interface GenerationContext {
  readonly requestId: string;
  readonly model: string;
  readonly tenantScope: Uint8Array;
  readonly wishes: PlacementWishes;
  /** On the clock of `performance.now()`. */
  readonly arrivedAt: number;
  /** Trace context of the request's span. */
  readonly context: Context;
  readonly tracer: Tracer;
  /** When the request's time is over, on the clock of `performance.now()`. */
  readonly expiresAtMs: number;
  /** The client went away, or the request's time is over; `reason` is then a `KvasirError`. */
  readonly signal: AbortSignal;
  /** Longest silence once a worker has accepted. */
  readonly stallTimeoutMs: number;
  /** Longest time from the loss of a worker to the next placement. */
  readonly resumeTimeoutMs: number;
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
  /** Where it runs from now on; again after a loss. */
  placed(placement: Placement): void;
  tokens(tokens: readonly SampledToken[], choice: number): SinkAnswer;
  /** What the request did not have to compute: before its first tokens, and at most once. */
  cached(cached: CachedTokens): void;
  ended(choice: number, finish: Finish, byStopString: boolean): void;
}

/** What is left of the request's time, as peers are told it. */
export function deadlineMs(facts: GenerationContext): number {
  return Math.max(1, facts.expiresAtMs - performance.now()) + DEADLINE_MARGIN_MS;
}

/** What is left of the time to the request's first token; 0: it has no such target. */
export function ttftLeftMs({ arrivedAt, wishes }: GenerationContext): number {
  const { ttftMs } = wishes.objectives;
  return ttftMs === 0 ? 0 : Math.max(1, ttftMs - (performance.now() - arrivedAt));
}
