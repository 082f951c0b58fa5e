import type { AttachedWorker } from "./cluster-view.ts";
import type { FetchOptions } from "./fetch-plan.ts";
import type { KvRate } from "./link-belief.ts";

/** Decode workers looked at beside the best, where KV comes slowly to that. Larger: a quick one is found sooner; smaller: cheaper. */
export const OTHER_RECEIVERS_MAX = 4;

/** KV that travels from who computes a prompt to who decodes. */
export interface HandOver {
  readonly rate: KvRate;
  /** That the link takes for it. */
  readonly linkMs: number;
  /** From when the first of it is computed, behind what was placed over the link before. */
  readonly transferMs: number;
}

/** `moved`: tokens whose KV the decode worker lacks. `queueMs`: until they begin to be computed. */
export function handOverOf(
  prefill: AttachedWorker,
  decode: AttachedWorker,
  { moved, queueMs }: { readonly moved: number; readonly queueMs: number },
  options: FetchOptions,
): HandOver {
  const rate = handOverRate(prefill, decode, options);
  const linkMs = ((moved * prefill.facts.kvBytesPerToken) / rate.bytesPerSecond) * 1_000;
  return { rate, linkMs, transferMs: Math.max(0, rate.waitMs - queueMs) + linkMs };
}

/** At which a prompt's KV is believed to come from the worker that computes it to the one that decodes. */
function handOverRate(prefill: AttachedWorker, decode: AttachedWorker, { kvRates }: FetchOptions): KvRate {
  return kvRates.areAllAssumed ? kvRates.assumed : kvRates.from(prefill.facts)(decode.facts);
}

/** Whether another receiver than this may be better only because KV comes to it sooner. */
export function comesSlowly(prefill: AttachedWorker, decode: AttachedWorker, options: FetchOptions): boolean {
  const { bytesPerSecond, waitMs } = handOverRate(prefill, decode, options);
  return bytesPerSecond < options.kvRates.assumed.bytesPerSecond || waitMs > 0;
}
