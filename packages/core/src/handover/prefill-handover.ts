import type { ErrorFacts } from "../kvasir-error.ts";
import { unreachable } from "../kvasir-error.ts";
import type { Token } from "../scheduler/events.ts";
import { type Instant, NEVER } from "../time.ts";

/**
 * One hand-over as the prefill side sees it. Every state that waits has a deadline; from `publishing` on it is the lease's end, which a live
 * decode worker moves by heartbeats. When the decode worker is lost without a word, what is computed waits a short time for another one.
 *
 * ```
 * accepted ──blocks──▶ publishing ──▶ ticketed ──first step──▶ computing ──token──▶ ready ──▶ received
 *     └───────────────────┴───────────────┴────────────────────────┴─────────────────┴──▶ closed | expired | failed
 * ```
 */
export interface PrefillHandover {
  readonly kind: PrefillHandoverKind;
  /** The earlier of `until` and `adoptBy`. */
  readonly deadline: Instant;
  /** End of the wait for blocks, then of the lease. */
  readonly until: Instant;
  /** While no decode worker is there: when the wait for another one ends. */
  readonly adoptBy: Instant | undefined;
}

export type PrefillHandoverKind =
  /** Waits for blocks. */
  | "accepted"
  /** Has blocks; the export is being opened. */
  | "publishing"
  /** The ticket is out, nothing is computed. */
  | "ticketed"
  | "computing"
  /** The first token is out; the KV waits to be pulled. */
  | "ready"
  | "received"
  /** The peer wants nothing more. */
  | "closed"
  | "expired"
  | "failed";

export type PrefillHandoverEvent =
  | { readonly kind: "BlocksTaken"; readonly leaseEnd: Instant }
  | { readonly kind: "ExportOpened" }
  | { readonly kind: "StepPlanned" }
  | { readonly kind: "TokenSampled"; readonly token: Token; readonly stopped: boolean }
  /** A heartbeat of the decode worker. */
  | { readonly kind: "LeaseRenewed"; readonly leaseEnd: Instant }
  | { readonly kind: "PeerReceived" }
  /** The peer said that it wants nothing more, or somebody said it for the peer. */
  | { readonly kind: "PeerClosed" }
  /** The peer's stream broke. */
  | { readonly kind: "PeerLost"; readonly adoptBy: Instant }
  /** A stream, of this decode worker or another one, took the hand-over over. */
  | { readonly kind: "PeerAdopted" }
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
  return { kind: "accepted", deadline: waitUntil, until: waitUntil, adoptBy: undefined };
}

export function isPrefillHandoverOver(state: PrefillHandover): boolean {
  return state.deadline === NEVER;
}

/** What an event makes of a hand-over. Events that come too late, or do not belong to the state, change nothing. */
export function advancePrefillHandover(state: PrefillHandover, event: PrefillHandoverEvent, now: Instant): Step {
  if (isPrefillHandoverOver(state)) return { next: state, effects: [] };
  const same: Step = { next: state, effects: [] };
  switch (event.kind) {
    case "BlocksTaken":
      if (state.kind !== "accepted") return same;
      return {
        next: waits({ ...state, kind: "publishing", until: event.leaseEnd }),
        effects: [{ kind: "OpenExport" }],
      };
    case "ExportOpened":
      if (state.kind !== "publishing") return same;
      return { next: { ...state, kind: "ticketed" }, effects: [{ kind: "SendTicket" }] };
    case "StepPlanned":
      return state.kind === "ticketed" ? { next: { ...state, kind: "computing" }, effects: [] } : same;
    case "TokenSampled":
      if (state.kind !== "ticketed" && state.kind !== "computing") return same;
      return {
        next: { ...state, kind: "ready" },
        effects: [{ kind: "SendFirstToken", token: event.token, stopped: event.stopped }],
      };
    case "LeaseRenewed":
      if (state.kind === "accepted" || event.leaseEnd <= state.until) return same;
      return { next: waits({ ...state, until: event.leaseEnd }), effects: [] };
    case "PeerReceived":
      return over(state, "received", undefined);
    case "PeerClosed":
      return over(state, "closed", undefined);
    case "PeerLost":
      if (state.adoptBy !== undefined) return same;
      return { next: waits({ ...state, adoptBy: event.adoptBy }), effects: [] };
    case "PeerAdopted":
      return { next: waits({ ...state, adoptBy: undefined }), effects: [] };
    case "Failed":
      return over(state, "failed", event.error);
    case "TimePassed":
      if (now < state.deadline) return same;
      if (state.adoptBy !== undefined && now >= state.adoptBy) return over(state, "closed", undefined);
      if (state.kind === "accepted") return over(state, "expired", overloaded());
      return over(state, "expired", {
        reason: "lease_expired",
        message: `the lease ended while the hand-over was ${state.kind}`,
      });
    default:
      return unreachable(event);
  }
}

function waits(state: PrefillHandover): PrefillHandover {
  const { until, adoptBy } = state;
  return { ...state, deadline: adoptBy !== undefined && adoptBy < until ? adoptBy : until };
}

function over(
  state: PrefillHandover,
  kind: "received" | "closed" | "expired" | "failed",
  error: ErrorFacts | undefined,
): Step {
  return {
    next: { ...state, kind, deadline: NEVER },
    effects: [{ kind: "FreeBlocks" }, { kind: "EndStream", error }],
  };
}

function overloaded(): ErrorFacts {
  return {
    reason: "overloaded",
    message: "no blocks became free for this prompt in time; retry later or elsewhere",
    retryAfterMs: 500,
  };
}
