import {
  type AttachedWorker,
  type Candidate,
  canDecode,
  canPrefill,
  choosePlacement,
  decodeBlockCount,
  isOpen,
  type PlacementQuestion,
  type PolicyOutcome,
  prefillBlockCount,
  type ReckonedLoad,
  reckonLoad,
} from "@kvasir/core";

/** A worker with room for the request, as policies see it. */
export interface Standing {
  readonly worker: AttachedWorker;
  readonly load: ReckonedLoad;
  readonly cachedTokenCount: number;
}

/** The workers that have room, by what they would do. */
export interface Standings {
  readonly mixed: readonly Standing[];
  readonly prefills: readonly Standing[];
  readonly decodes: readonly Standing[];
}

export function standingsOf({ workers, request, reservedOf, exclusionOf, options }: PlacementQuestion): Standings {
  const mixed: Standing[] = [];
  const prefills: Standing[] = [];
  const decodes: Standing[] = [];
  for (const worker of workers) {
    const { facts } = worker;
    if (facts.model !== request.model || !isOpen(worker) || exclusionOf(worker) !== "none") continue;
    const load = reckonLoad(worker, reservedOf(worker.incarnation));
    const standing = { worker, load, cachedTokenCount: options.cachedTokensOf(facts) };
    if (canPrefill(facts, request)) {
      if (prefillBlockCount(request, facts.blockSize) <= load.freeBlockCount) prefills.push(standing);
    } else if (canDecode(facts, request) && decodeBlockCount(request, facts.blockSize) <= load.freeBlockCount) {
      (facts.role === "mixed" ? mixed : decodes).push(standing);
    }
  }
  return { mixed, prefills, decodes };
}

/** The outcome for one choice; without one, what the router's own choice says of why. */
export function placedOn(
  prefill: Standing | undefined,
  decode: Standing | undefined,
  question: PlacementQuestion,
): PolicyOutcome {
  const { workers, request, reservedOf, exclusionOf, options } = question;
  if (decode === undefined) return choosePlacement(workers, request, reservedOf, exclusionOf, options);
  const source = prefill ?? decode;
  const speed = source.worker.load?.prefillTokensPerSecond || options.prefillTokensPerSecond;
  const uncachedTokenCount = request.promptTokenCount - source.cachedTokenCount;
  const ttft = {
    queueMs: (source.load.queuedPromptTokenCount / speed) * 1_000,
    computeMs: (uncachedTokenCount / speed) * 1_000,
    tailMs: prefill === undefined ? 0 : options.handoverMs,
  };
  const candidate: Candidate = {
    mode: prefill === undefined ? "aggregated" : "split",
    isLocalPrefill: prefill === undefined && decode.worker.facts.role === "decode",
    prefill: prefill?.worker,
    decode: decode.worker,
    ttftMs: ttft.queueMs + ttft.computeMs + ttft.tailMs,
    ttft,
    tbtMs: decode.worker.load?.decodeStepMs || options.decodeStepMs,
    prefillTokensPerSecond: speed,
    uncachedTokenCount,
    freeBlockCount: decode.load.freeBlockCount,
    prefillFreeBlockCount: prefill?.load.freeBlockCount ?? 0,
    sequenceCount: decode.load.sequenceCount,
  };
  return { kind: "placed", candidates: [candidate] };
}

/** The one with the least `cost`; equal ones are drawn from. */
export function least(
  standings: readonly Standing[],
  cost: (standing: Standing) => number,
  random: () => number,
): Standing | undefined {
  let best: Standing | undefined;
  let bestCost = Number.POSITIVE_INFINITY;
  let equal = 0;
  for (const standing of standings) {
    const value = cost(standing);
    if (value < bestCost) {
      best = standing;
      bestCost = value;
      equal = 1;
    } else if (value === bestCost && random() * ++equal < 1) best = standing;
  }
  return best;
}
