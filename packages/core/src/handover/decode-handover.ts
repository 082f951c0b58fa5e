import { type ErrorFacts, isRetryable, unreachable } from "../kvasir-error.ts";
import type { Token } from "../scheduler/events.ts";
import { addNanos, type Instant, type Nanos, NEVER } from "../time.ts";

/**
 * One hand-over as the decode side sees it. Every state that waits has a deadline; from `ticketed` on it is the lease's end, which heartbeats
 * move as long as the prompt is being computed, and after that frames only: a peer that lives and sends nothing is lost. The first token and the last of the KV travel apart and may come in either order. What is verified is kept when the prefill worker is
 * lost: once no fetch writes any more, the rest comes from another prefill worker or, when it is short, is computed here. What this worker has
 * cached counts as verified from the beginning: of a partial hit only the rest travels, and after a hit of nearly everything nobody is asked.
 *
 * ```
 * reserving ─▶ requesting ─▶ ticketed ─frame─▶ pulling ─┬─token─▶ firstToken ─KV─┬─▶ joined
 *                  ▲  │          │                │     └─KV────▶ kvComplete ─token┘   (token is final: finished)
 *                  │  └──────────┴──── lost ──────┴──────────────────┘
 *                  └───────── fencing ◀──────────────────────────┘ ──no copy runs──▶ tail
 *     reserving ──nearly all is cached──▶ localHit          each that waits ──▶ failed | cancelled
 * ```
 */
export interface DecodeHandover {
  readonly kind: DecodeHandoverKind;
  readonly deadline: Instant;
  /** Of the prompt, from its beginning: cached, or verified and in place. Never less than it was. */
  readonly verifiedTokenCount: number;
  /** The first token; the client has it. */
  readonly token: Token | undefined;
  /** Prefill workers that may still be asked. */
  readonly prefillsLeft: number;
  /** While `fencing`: why. */
  readonly lostFor: ErrorFacts | undefined;
}

export type DecodeHandoverKind =
  /** Waits for a counted reservation. */
  | "reserving"
  /** Asked a prefill worker, which says at once that it heard, or is not there; its ticket follows. */
  | "requesting"
  /** Has physical blocks and an open fetch; nothing has arrived through it. */
  | "ticketed"
  | "pulling"
  /** The client has its first token; KV is on its way. */
  | "firstToken"
  /** The KV is in place; the token is on its way. */
  | "kvComplete"
  /** The prefill worker is lost; a copy into the blocks may still run. */
  | "fencing"
  /** The rest of the prompt is computed here, like any prompt. */
  | "tail"
  /** The same, because so little of it was not cached that no prefill worker was asked. */
  | "localHit"
  /** In the running batch. */
  | "joined"
  /** The first token was the last. */
  | "finished"
  | "failed"
  | "cancelled";

export type DecodeHandoverEvent =
  /**
   * `heardBy`: when the prefill worker should have said that the request reached it. `cachedTokenCount`: of the prompt, whole blocks that were
   * here; this hand-over holds them.
   */
  | { readonly kind: "Reserved"; readonly heardBy: Instant; readonly cachedTokenCount: number }
  /** The prefill worker has the request; its ticket may have to wait for blocks. */
  | { readonly kind: "RequestHeard"; readonly ticketBy: Instant }
  | { readonly kind: "TicketReceived"; readonly leaseEnd: Instant }
  /** The source confirmed the lease. */
  | { readonly kind: "LeaseRenewed"; readonly leaseEnd: Instant }
  /** `progressBy`: when the next ones should have come. */
  | { readonly kind: "FramesVerified"; readonly verifiedTokenCount: number; readonly progressBy: Instant }
  | { readonly kind: "FirstTokenReceived"; readonly token: Token; readonly stopped: boolean }
  /** The prefill worker or the way to it failed; another one may serve. */
  | { readonly kind: "PeerLost"; readonly error: ErrorFacts }
  /** After `StopTransfer`: nothing writes into the blocks any more. */
  | { readonly kind: "Fenced"; readonly heardBy: Instant }
  /** This worker cannot go on. */
  | { readonly kind: "Failed"; readonly error: ErrorFacts }
  | { readonly kind: "Cancelled" }
  | { readonly kind: "TimePassed" };

export type DecodeHandoverEffect =
  /** Ask the next prefill worker, under a transfer id of its own. */
  | { readonly kind: "RequestPrefill" }
  /** Take physical blocks, if there are none yet, and fetch what is not verified. */
  | { readonly kind: "OpenFetch"; readonly verifiedTokenCount: number }
  | { readonly kind: "SendFirstToken"; readonly token: Token; readonly final: boolean }
  /** Join the batch, and tell prefill that its pins may go. */
  | { readonly kind: "Join"; readonly firstTokenId: number }
  /** End fetch and hand-over call, and fence; the blocks stay. Answered by `Fenced`. */
  | { readonly kind: "StopTransfer" }
  /** Compute here what is beyond the verified tokens; a first token that the client has is not sampled again. */
  | { readonly kind: "ComputeTail"; readonly verifiedTokenCount: number; readonly token: Token | undefined }
  /** Cancel fetch and hand-over call, close the sequence, fence, free. */
  | { readonly kind: "AbandonTransfer" }
  | { readonly kind: "EndStream"; readonly error: ErrorFacts | undefined };

/** What does not change in a hand-over. */
export interface DecodeHandoverPlan {
  readonly promptTokenCount: number;
  /**
   * Longest rest of a prompt that is computed here when a prefill worker is lost. Larger: fewer restarts, but longer steps for the others in
   * the batch; smaller: more prompts are computed twice.
   */
  readonly tailTokenMax: number;
  /**
   * Longest rest of a prompt that is computed here, unasked, when all before it was cached. Larger: more prompts need no transfer and no other
   * worker; smaller: those who decode here see fewer prompt tokens in their steps.
   */
  readonly hitTailTokenMax: number;
  /** Longest wait for a copy to end that may still write. */
  readonly fenceWithin: Nanos;
}

interface Step {
  readonly next: DecodeHandover;
  readonly effects: readonly DecodeHandoverEffect[];
}

/** `prefillCount`: prefill workers that may be asked, one after the other; at least one. */
export function newDecodeHandover(waitUntil: Instant, prefillCount = 1): DecodeHandover {
  return {
    kind: "reserving",
    deadline: waitUntil,
    verifiedTokenCount: 0,
    token: undefined,
    prefillsLeft: prefillCount,
    lostFor: undefined,
  };
}

export function isDecodeHandoverOver(state: DecodeHandover): boolean {
  return state.deadline === NEVER;
}

/** What an event makes of a hand-over. Events that come too late, or do not belong to the state, change nothing. */
export function advanceDecodeHandover(
  state: DecodeHandover,
  event: DecodeHandoverEvent,
  plan: DecodeHandoverPlan,
  now: Instant,
): Step {
  if (isDecodeHandoverOver(state)) return { next: state, effects: [] };
  const same: Step = { next: state, effects: [] };
  switch (event.kind) {
    case "Reserved":
      return state.kind === "reserving" ? reserved(state, event, plan) : same;
    case "RequestHeard":
      if (state.kind !== "requesting" || event.ticketBy <= state.deadline) return same;
      return { next: { ...state, deadline: event.ticketBy }, effects: [] };
    case "TicketReceived":
      if (state.kind !== "requesting") return same;
      return {
        next: { ...state, kind: state.token === undefined ? "ticketed" : "firstToken", deadline: event.leaseEnd },
        effects: [{ kind: "OpenFetch", verifiedTokenCount: state.verifiedTokenCount }],
      };
    case "LeaseRenewed":
      // Once one of token and KV is there the other is on its way: a peer that only says that it lives is no progress.
      if (state.kind !== "ticketed" && state.kind !== "pulling") return same;
      if (event.leaseEnd <= state.deadline) return same;
      return { next: { ...state, deadline: event.leaseEnd }, effects: [] };
    case "FramesVerified":
      return isPulling(state) ? verified(state, event, plan) : same;
    case "FirstTokenReceived":
      return isPulling(state) && state.token === undefined ? firstToken(state, event.token, event.stopped) : same;
    case "PeerLost":
      return lost(state, event.error, plan, now);
    case "Fenced":
      if (state.kind !== "fencing") return same;
      if (isTailShort(state, plan)) {
        const { verifiedTokenCount, token } = state;
        return {
          next: { ...state, kind: "tail", deadline: NEVER },
          effects: [{ kind: "ComputeTail", verifiedTokenCount, token }],
        };
      }
      return request(state, event.heardBy);
    case "Failed":
      return over(state, "failed", event.error);
    case "Cancelled":
      return over(state, "cancelled", { reason: "cancelled", message: "the caller went away" });
    case "TimePassed":
      return now < state.deadline ? same : lost(state, overdue(state), plan, now);
    default:
      return unreachable(event);
  }
}

function isPulling({ kind }: DecodeHandover): boolean {
  return kind === "ticketed" || kind === "pulling" || kind === "firstToken" || kind === "kvComplete";
}

function reserved(
  state: DecodeHandover,
  { cachedTokenCount, heardBy }: Extract<DecodeHandoverEvent, { readonly kind: "Reserved" }>,
  plan: DecodeHandoverPlan,
): Step {
  const next = { ...state, verifiedTokenCount: cachedTokenCount };
  const isNearlyAll = cachedTokenCount > 0 && plan.promptTokenCount - cachedTokenCount <= plan.hitTailTokenMax;
  if (!isNearlyAll) return request(next, heardBy);
  return {
    next: { ...next, kind: "localHit", deadline: NEVER },
    effects: [{ kind: "ComputeTail", verifiedTokenCount: cachedTokenCount, token: undefined }],
  };
}

function isTailShort(state: DecodeHandover, plan: DecodeHandoverPlan): boolean {
  return plan.promptTokenCount - state.verifiedTokenCount <= plan.tailTokenMax;
}

function request(state: DecodeHandover, deadline: Instant): Step {
  return {
    next: { ...state, kind: "requesting", deadline, prefillsLeft: state.prefillsLeft - 1, lostFor: undefined },
    effects: [{ kind: "RequestPrefill" }],
  };
}

function verified(
  state: DecodeHandover,
  event: Extract<DecodeHandoverEvent, { readonly kind: "FramesVerified" }>,
  plan: DecodeHandoverPlan,
): Step {
  const verifiedTokenCount = Math.max(state.verifiedTokenCount, event.verifiedTokenCount);
  const isProgress = verifiedTokenCount > state.verifiedTokenCount && event.progressBy > state.deadline;
  const deadline = isProgress ? event.progressBy : state.deadline;
  const isComplete = verifiedTokenCount >= plan.promptTokenCount;
  if (isComplete && state.token !== undefined) return join({ ...state, verifiedTokenCount }, state.token, []);
  const waiting = state.token === undefined ? "pulling" : "firstToken";
  const kind = isComplete ? "kvComplete" : waiting;
  return { next: { ...state, kind, verifiedTokenCount, deadline }, effects: [] };
}

function firstToken(state: DecodeHandover, token: Token, stopped: boolean): Step {
  const send: DecodeHandoverEffect = { kind: "SendFirstToken", token, final: stopped };
  if (stopped) return over({ ...state, token }, "finished", undefined, [send]);
  if (state.kind === "kvComplete") return join(state, token, [send]);
  return { next: { ...state, kind: "firstToken", token }, effects: [send] };
}

/** Keeps what is verified, where there is a way to go on from it. */
function lost(state: DecodeHandover, error: ErrorFacts, plan: DecodeHandoverPlan, now: Instant): Step {
  const isAnother = isPulling(state) || state.kind === "requesting";
  const canGoOn = isTailShort(state, plan) || state.prefillsLeft > 0;
  if (!isAnother || !canGoOn || !isRetryable(error.reason)) return over(state, "failed", state.lostFor ?? error);
  const deadline = addNanos(now, plan.fenceWithin);
  return { next: { ...state, kind: "fencing", deadline, lostFor: error }, effects: [{ kind: "StopTransfer" }] };
}

function join(state: DecodeHandover, token: Token, before: readonly DecodeHandoverEffect[]): Step {
  return {
    next: { ...state, kind: "joined", deadline: NEVER, token },
    effects: [...before, { kind: "Join", firstTokenId: token.tokenId }],
  };
}

function over(
  state: DecodeHandover,
  kind: "finished" | "failed" | "cancelled",
  error: ErrorFacts | undefined,
  before: readonly DecodeHandoverEffect[] = [],
): Step {
  return {
    next: { ...state, kind, deadline: NEVER },
    effects: [...before, { kind: "AbandonTransfer" }, { kind: "EndStream", error }],
  };
}

function overdue({ kind }: DecodeHandover): ErrorFacts {
  switch (kind) {
    case "reserving":
      return {
        reason: "overloaded",
        message: "no blocks became free for this request in time; retry later or elsewhere",
        retryAfterMs: 500,
      };
    case "requesting":
      return { reason: "unavailable", message: "the prefill worker did not answer in time" };
    default:
      return { reason: "lease_expired", message: `the lease ended while the hand-over was ${kind}` };
  }
}
