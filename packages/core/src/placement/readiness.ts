import type { AttachedWorker } from "./cluster-view.ts";

/** Whether any request could be placed now: a mixed worker, or a prefill and a decode worker of one model and layout. */
export function placementReadiness(
  workers: readonly AttachedWorker[],
): { readonly ready: true } | { readonly ready: false; readonly reason: string } {
  const live = workers.filter((worker) => worker.load !== undefined && !worker.isLost);
  if (live.some(({ facts }) => facts.role === "mixed")) return { ready: true };
  const prefillers = live.filter(({ facts }) => facts.role === "prefill");
  const decoders = live.filter(({ facts }) => facts.role === "decode");
  const canPair = prefillers.some(({ facts }) =>
    decoders.some((decoder) => decoder.facts.fingerprint === facts.fingerprint && decoder.facts.model === facts.model),
  );
  if (canPair) return { ready: true };
  if (live.length === 0) return { ready: false, reason: "no worker is attached" };
  if (decoders.length === 0) return { ready: false, reason: "no decode or mixed worker is attached" };
  if (prefillers.length === 0) return { ready: false, reason: "no prefill or mixed worker is attached" };
  const layouts = [...prefillers, ...decoders].map(
    ({ facts }) => `${facts.workerId} ${facts.model} ${facts.fingerprint.slice(0, 8)}`,
  );
  return { ready: false, reason: `no prefill and decode worker share a model and a KV layout: ${layouts.join(", ")}` };
}
