import type { AttachedWorker } from "./cluster-view.ts";

/** Whether any request could be placed now: a decode worker computes prompts too while there is no prefill worker. */
export function placementReadiness(
  workers: readonly AttachedWorker[],
): { readonly ready: true } | { readonly ready: false; readonly reason: string } {
  const live = workers.filter((worker) => worker.load !== undefined && !worker.isLost);
  if (live.some(({ facts }) => facts.role !== "prefill")) return { ready: true };
  const reason = live.length === 0 ? "no worker is attached" : "no decode or mixed worker is attached";
  return { ready: false, reason };
}
