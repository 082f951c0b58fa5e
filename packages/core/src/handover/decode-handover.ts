import type { ErrorFacts } from "../kvasir-error.ts";
import { unreachable } from "../kvasir-error.ts";
import type { Token } from "../scheduler/events.ts";
import { type Instant, NEVER } from "../time.ts";

/**
 * One hand-over as the decode side sees it. Every state that waits has a deadline; from `ticketed` on it is the lease's end. The
 * first token and the last of the KV travel apart and may come in either order.
 *
 * ```
 * reserving ─▶ requesting ─▶ ticketed ─frame─▶ pulling ─┬─token─▶ firstToken ─KV─┬─▶ joined
 *                                                       └─KV────▶ kvComplete ─token┘   (token is final: finished)
 *     └────────────┴────────────┴────────────────┴──────────┴──▶ failed | cancelled
 * ```
 */
export type DecodeHandover =
  /** Waits for a counted reservation. */
  | { readonly kind: "reserving"; readonly deadline: Instant }
  /** Asked the prefill worker, which answers at once or not at all. */
  | { readonly kind: "requesting"; readonly deadline: Instant }
  /** Has physical blocks and an open fetch; nothing has arrived. */
  | { readonly kind: "ticketed"; readonly deadline: Instant }
  | { readonly kind: "pulling"; readonly deadline: Instant }
  /** The client has its first token; KV is on its way. */
  | { readonly kind: "firstToken"; readonly deadline: Instant; readonly token: Token }
  /** The KV is in place; the token is on its way. */
  | { readonly kind: "kvComplete"; readonly deadline: Instant }
  /** In the running batch. */
  | { readonly kind: "joined"; readonly deadline: Instant }
  /** The first token was the last. */
  | { readonly kind: "finished"; readonly deadline: Instant }
  | { readonly kind: "failed"; readonly deadline: Instant }
  | { readonly kind: "cancelled"; readonly deadline: Instant };

export type DecodeHandoverEvent =
  | { readonly kind: "Reserved"; readonly requestDeadline: Instant }
  | { readonly kind: "TicketReceived"; readonly leaseEnd: Instant }
  | { readonly kind: "FramesVerified"; readonly complete: boolean }
  | { readonly kind: "FirstTokenReceived"; readonly token: Token; readonly stopped: boolean }
  | { readonly kind: "Failed"; readonly error: ErrorFacts }
  | { readonly kind: "Cancelled" }
  | { readonly kind: "TimePassed" };

export type DecodeHandoverEffect =
  | { readonly kind: "RequestPrefill" }
  /** Take physical blocks and start the fetch. */
  | { readonly kind: "OpenFetch" }
  | { readonly kind: "SendFirstToken"; readonly token: Token; readonly final: boolean }
  /** Join the batch, and tell prefill that its pins may go. */
  | { readonly kind: "Join"; readonly firstTokenId: number }
  /** Cancel fetch and hand-over call, close the sequence, fence, free. */
  | { readonly kind: "AbandonTransfer" }
  | { readonly kind: "EndStream"; readonly error: ErrorFacts | undefined };

interface Step {
  readonly next: DecodeHandover;
  readonly effects: readonly DecodeHandoverEffect[];
}

export function newDecodeHandover(waitUntil: Instant): DecodeHandover {
  return { kind: "reserving", deadline: waitUntil };
}

export function isDecodeHandoverOver(state: DecodeHandover): boolean {
  return state.deadline === NEVER;
}

/** What an event makes of a hand-over. Events that come too late, or do not belong to the state, change nothing. */
export function advanceDecodeHandover(state: DecodeHandover, event: DecodeHandoverEvent, now: Instant): Step {
  if (isDecodeHandoverOver(state)) return { next: state, effects: [] };
  const { deadline } = state;
  switch (event.kind) {
    case "Reserved":
      if (state.kind !== "reserving") break;
      return { next: { kind: "requesting", deadline: event.requestDeadline }, effects: [{ kind: "RequestPrefill" }] };
    case "TicketReceived":
      if (state.kind !== "requesting") break;
      return { next: { kind: "ticketed", deadline: event.leaseEnd }, effects: [{ kind: "OpenFetch" }] };
    case "FramesVerified":
      if (state.kind === "firstToken" && event.complete) return join(state.token, []);
      if (state.kind !== "ticketed" && state.kind !== "pulling") break;
      return { next: { kind: event.complete ? "kvComplete" : "pulling", deadline }, effects: [] };
    case "FirstTokenReceived": {
      const send: DecodeHandoverEffect = { kind: "SendFirstToken", token: event.token, final: event.stopped };
      if (state.kind !== "ticketed" && state.kind !== "pulling" && state.kind !== "kvComplete") break;
      if (event.stopped) return over("finished", undefined, [send]);
      if (state.kind === "kvComplete") return join(event.token, [send]);
      return { next: { kind: "firstToken", deadline, token: event.token }, effects: [send] };
    }
    case "Failed":
      return over("failed", event.error);
    case "Cancelled":
      return over("cancelled", { reason: "cancelled", message: "the caller went away" });
    case "TimePassed":
      if (now >= deadline) return over("failed", overdue(state));
      break;
    default:
      return unreachable(event);
  }
  return { next: state, effects: [] };
}

function join(token: Token, before: readonly DecodeHandoverEffect[]): Step {
  return {
    next: { kind: "joined", deadline: NEVER },
    effects: [...before, { kind: "Join", firstTokenId: token.tokenId }],
  };
}

function over(
  kind: "finished" | "failed" | "cancelled",
  error: ErrorFacts | undefined,
  before: readonly DecodeHandoverEffect[] = [],
): Step {
  return {
    next: { kind, deadline: NEVER },
    effects: [...before, { kind: "AbandonTransfer" }, { kind: "EndStream", error }],
  };
}

function overdue(state: DecodeHandover): ErrorFacts {
  switch (state.kind) {
    case "reserving":
      return {
        reason: "overloaded",
        message: "no blocks became free for this request in time; retry later or elsewhere",
        retryAfterMs: 500,
      };
    case "requesting":
      return { reason: "unavailable", message: "the prefill worker did not answer with a ticket in time" };
    default:
      return { reason: "lease_expired", message: `the lease ended while the hand-over was ${state.kind}` };
  }
}
