import type { ErrorFacts } from "../kvasir-error.ts";
import { unreachable } from "../kvasir-error.ts";
import type { Token } from "../scheduler/events.ts";
import { type Instant, NEVER } from "../time.ts";

/**
 * One hand-over as the prefill side sees it. Every state that waits has a deadline; from `ticketed` on it is the lease's end.
 *
 * ```
 * accepted ──blocks──▶ publishing ──▶ ticketed ──first step──▶ computing ──token──▶ ready ──▶ received
 *     └───────────────────┴───────────────┴────────────────────────┴─────────────────┴──▶ closed | expired | failed
 * ```
 */
export type PrefillHandover =
  /** Waits for blocks. */
  | { readonly kind: "accepted"; readonly deadline: Instant }
  /** Has blocks; the export is being opened. */
  | { readonly kind: "publishing"; readonly deadline: Instant }
  /** The ticket is out, nothing is computed. */
  | { readonly kind: "ticketed"; readonly deadline: Instant }
  | { readonly kind: "computing"; readonly deadline: Instant }
  /** The first token is out; the KV waits to be pulled. */
  | { readonly kind: "ready"; readonly deadline: Instant }
  | { readonly kind: "received"; readonly deadline: Instant }
  /** The peer went away. */
  | { readonly kind: "closed"; readonly deadline: Instant }
  | { readonly kind: "expired"; readonly deadline: Instant }
  | { readonly kind: "failed"; readonly deadline: Instant };

export type PrefillHandoverEvent =
  | { readonly kind: "BlocksTaken"; readonly leaseEnd: Instant }
  | { readonly kind: "ExportOpened" }
  | { readonly kind: "StepPlanned" }
  | { readonly kind: "TokenSampled"; readonly token: Token; readonly stopped: boolean }
  | { readonly kind: "PeerReceived" }
  | { readonly kind: "PeerClosed" }
  | { readonly kind: "Failed"; readonly error: ErrorFacts }
  | { readonly kind: "TimePassed" };

export type PrefillHandoverEffect =
  | { readonly kind: "OpenExport" }
  | { readonly kind: "SendTicket" }
  | { readonly kind: "SendFirstToken"; readonly token: Token; readonly stopped: boolean }
  /** Close the sequence, and Release its export if one was opened or is being opened; then the blocks go. */
  | { readonly kind: "FreeBlocks" }
  | { readonly kind: "EndStream"; readonly error: ErrorFacts | undefined };

interface Step {
  readonly next: PrefillHandover;
  readonly effects: readonly PrefillHandoverEffect[];
}

export function newPrefillHandover(waitUntil: Instant): PrefillHandover {
  return { kind: "accepted", deadline: waitUntil };
}

export function isPrefillHandoverOver(state: PrefillHandover): boolean {
  return state.deadline === NEVER;
}

/** What an event makes of a hand-over. Events that come too late, or do not belong to the state, change nothing. */
export function advancePrefillHandover(state: PrefillHandover, event: PrefillHandoverEvent, now: Instant): Step {
  if (isPrefillHandoverOver(state)) return { next: state, effects: [] };
  const { deadline } = state;
  switch (event.kind) {
    case "BlocksTaken":
      if (state.kind !== "accepted") break;
      return { next: { kind: "publishing", deadline: event.leaseEnd }, effects: [{ kind: "OpenExport" }] };
    case "ExportOpened":
      if (state.kind !== "publishing") break;
      return { next: { kind: "ticketed", deadline }, effects: [{ kind: "SendTicket" }] };
    case "StepPlanned":
      if (state.kind !== "ticketed") break;
      return { next: { kind: "computing", deadline }, effects: [] };
    case "TokenSampled":
      if (state.kind !== "ticketed" && state.kind !== "computing") break;
      return {
        next: { kind: "ready", deadline },
        effects: [{ kind: "SendFirstToken", token: event.token, stopped: event.stopped }],
      };
    case "PeerReceived":
      return over("received", undefined);
    case "PeerClosed":
      return over("closed", undefined);
    case "Failed":
      return over("failed", event.error);
    case "TimePassed":
      if (now < deadline) break;
      if (state.kind === "accepted") return over("expired", overloaded());
      return over("expired", {
        reason: "lease_expired",
        message: `the lease ended while the hand-over was ${state.kind}`,
      });
    default:
      return unreachable(event);
  }
  return { next: state, effects: [] };
}

function over(kind: "received" | "closed" | "expired" | "failed", error: ErrorFacts | undefined): Step {
  return { next: { kind, deadline: NEVER }, effects: [{ kind: "FreeBlocks" }, { kind: "EndStream", error }] };
}

function overloaded(): ErrorFacts {
  return {
    reason: "overloaded",
    message: "no blocks became free for this prompt in time; retry later or elsewhere",
    retryAfterMs: 500,
  };
}
