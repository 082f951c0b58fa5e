import type { KvAccuracy } from "@kvasir/core";
import type { KvWish } from "./transfer.ts";

/**
 * From a request's arrival to when its KV is wanted, so that of transfers on one link the oldest request's goes first: all are in place sooner
 * on average than if each got its share. Smaller: requests that waited longer than this go in any order.
 */
const KV_WANTED_WITHIN_MS = 60_000;

/** From the first token to the next one, where a request says nothing: its KV is wanted by then. */
const USUAL_GAP_MS = 50;

/** What a request says of the KV that travels for it. */
export interface KvTerms {
  readonly accuracy: KvAccuracy;
  /** 0: a usual gap. */
  readonly tbtTargetMs: number;
  /** From its arrival to its first token; 0: nobody knows. */
  readonly predictedTtftMs: number;
}

/** What is asked of a fetch when the request has waited so long. */
export function wishOf({ accuracy, tbtTargetMs, predictedTtftMs }: KvTerms, waitedMs: number): KvWish {
  const untilTokenMs = Math.max(0, predictedTtftMs - waitedMs);
  return {
    accuracy,
    deadlineMs: Math.max(1, Math.ceil(KV_WANTED_WITHIN_MS - waitedMs)),
    wantedMs: untilTokenMs + (tbtTargetMs > 0 ? tbtTargetMs : USUAL_GAP_MS),
  };
}
