import { type AttachedWorker, isOpen } from "./cluster-view.ts";

/** Whether any request could be placed now: a decode worker computes prompts too while there is no prefill worker. */
export function placementReadiness(
  workers: readonly AttachedWorker[],
): { readonly ready: true } | { readonly ready: false; readonly reason: string } {
  const live = workers.filter(isOpen);
  if (live.some(({ facts }) => facts.role !== "prefill")) return { ready: true };
  const reason = live.length === 0 ? "no worker is attached" : "no decode or mixed worker is attached";
  return { ready: false, reason };
}
