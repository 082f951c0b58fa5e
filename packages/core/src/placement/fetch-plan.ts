import type { PredictionOptions } from "./predict.ts";

/** Who lends KV: a worker or a store. */
export interface PrefixHolder {
  readonly facts: { readonly workerId: string; readonly address: string };
  readonly epoch: number;
}

/** Tokens [0, `tokenEnd`) of a prompt are cached elsewhere. */
export interface PrefixFetchPlan {
  readonly holder: PrefixHolder;
  readonly tokenEnd: number;
  /** Absent: a prefill worker. */
  readonly isStore?: boolean;
}

/** What a fetch can get. */
export interface HeldPrefix extends PrefixFetchPlan {
  /** Of them, those that a store reads from disk. */
  readonly diskTokenCount: number;
}

export interface PlannedFetch {
  readonly plan: PrefixFetchPlan;
  readonly fetchMs: number;
}

/** The least time that a fetch of cached KV must save before it is worth a call. Larger: more is computed twice; smaller: more calls. */
const FETCH_SAVES_MIN_MS = 5;

/** Of those who hold more of a prompt than its worker does, the one whose KV saves most time; undefined: computing is as quick. */
export function bestFetch(
  held: readonly HeldPrefix[],
  prefill: {
    readonly cachedTokenCount: number;
    readonly tokensPerSecond: number;
    readonly kvBytesPerToken: number;
  },
  options: PredictionOptions,
): PlannedFetch | undefined {
  let best: PlannedFetch | undefined;
  let bestSavedMs = FETCH_SAVES_MIN_MS;
  for (const { diskTokenCount, ...plan } of held) {
    const tokenCount = plan.tokenEnd - prefill.cachedTokenCount;
    if (tokenCount <= 0) continue;
    const msOf = (tokens: number, bytesPerSecond: number) =>
      ((tokens * prefill.kvBytesPerToken) / bytesPerSecond) * 1_000;
    const fromDisk = Math.min(tokenCount, diskTokenCount);
    const fetchMs =
      options.handoverMs + msOf(tokenCount, options.kvBytesPerSecond) + msOf(fromDisk, options.storeDiskBytesPerSecond);
    const savedMs = (tokenCount / prefill.tokensPerSecond) * 1_000 - fetchMs;
    if (savedMs < bestSavedMs || (best !== undefined && savedMs === bestSavedMs)) continue;
    best = { plan, fetchMs };
    bestSavedMs = savedMs;
  }
  return best;
}
