import type { AttachedWorker } from "./cluster-view.ts";
import type { FetchOptions } from "./fetch-plan.ts";
import type { KvRate } from "./link-belief.ts";

/** Decode workers looked at beside the best, where KV comes slowly to that. Larger: a quick one is found sooner; smaller: cheaper. */
export const OTHER_RECEIVERS_MAX = 4;

/** At which a prompt's KV is believed to come from the worker that computes it to the one that decodes. */
export function handOverRate(prefill: AttachedWorker, decode: AttachedWorker, { kvRates }: FetchOptions): KvRate {
  return kvRates.areAllAssumed ? kvRates.assumed : kvRates.from(prefill.facts)(decode.facts);
}

/** Whether another receiver may be better only because KV comes to it more quickly. */
export function isSlowerThanAssumed(rate: KvRate, { kvRates }: FetchOptions): boolean {
  return rate.bytesPerSecond < kvRates.assumed.bytesPerSecond;
}
