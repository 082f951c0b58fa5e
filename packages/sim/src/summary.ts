import type { SimulationResult } from "./simulation.ts";

export interface Objective {
  readonly ttftMs: number;
  readonly tbtMs: number;
}

/** What became of a run's requests. */
export interface RunSummary {
  readonly requestCount: number;
  readonly finishedCount: number;
  readonly rejectedCount: number;
  readonly failedCount: number;
  /** Share of all requests, the refused included, that met both targets. */
  readonly attainment: number;
  readonly ttftAttainment: number;
  readonly tbtAttainment: number;
  readonly meanTtftMs: number;
  readonly ttftP50Ms: number;
  readonly ttftP99Ms: number;
  /** Over requests, of the mean gap between a request's tokens. */
  readonly meanTpotMs: number;
  readonly tpotP99Ms: number;
  /** Longest gap of each request, their 99th percentile. */
  readonly gapMaxP99Ms: number;
  readonly outputTokensPerSecond: number;
  /** Share of all prompt tokens whose KV was reused where prompts are computed. */
  readonly reuse: number;
  /** Mean share of time that devices were busy. */
  readonly utilization: number;
}

export function summarize(result: SimulationResult, objective: Objective): RunSummary {
  const { requests, workers, endMs } = result;
  const finished = requests.filter(({ outcome }) => outcome === "finished");
  const ttfts = finished.map((request) => request.ttftMs ?? 0).sort((a, b) => a - b);
  const tpots = finished.map((request) => request.tpotMs).sort((a, b) => a - b);
  const gaps = finished.map((request) => request.gapMaxNanos / 1e6).sort((a, b) => a - b);
  const count = (met: (ttftMs: number, tpotMs: number) => boolean) =>
    finished.filter((request) => met(request.ttftMs ?? Number.POSITIVE_INFINITY, request.tpotMs)).length /
    Math.max(1, requests.length);
  const tokens = finished.reduce((sum, { tokenCount }) => sum + tokenCount, 0);
  return {
    requestCount: requests.length,
    finishedCount: finished.length,
    rejectedCount: requests.filter(({ outcome }) => outcome === "rejected").length,
    failedCount: requests.filter(({ outcome }) => outcome === "failed").length,
    attainment: count((ttft, tpot) => ttft <= objective.ttftMs && tpot <= objective.tbtMs),
    ttftAttainment: count((ttft) => ttft <= objective.ttftMs),
    tbtAttainment: count((_, tpot) => tpot <= objective.tbtMs),
    meanTtftMs: mean(ttfts),
    ttftP50Ms: rank(ttfts, 0.5),
    ttftP99Ms: rank(ttfts, 0.99),
    meanTpotMs: mean(tpots),
    tpotP99Ms: rank(tpots, 0.99),
    gapMaxP99Ms: rank(gaps, 0.99),
    reuse:
      finished.reduce((sum, { cachedTokenCount }) => sum + cachedTokenCount, 0) /
      Math.max(
        1,
        finished.reduce((sum, { trace }) => sum + trace.promptTokenCount, 0),
      ),
    outputTokensPerSecond: (tokens / endMs) * 1_000,
    utilization: mean(workers.map(({ use }) => use.busyMs / endMs)),
  };
}

/** One line of JSON per request: what a replay keeps, and what two runs of one seed must have in common. */
export function recordsOf({ requests }: SimulationResult): string {
  const lines = requests.map((request) => {
    const [best] = request.decision?.candidates ?? [];
    return JSON.stringify({
      key: request.key,
      outcome: request.outcome,
      prefill: best?.prefill?.facts.workerId ?? "",
      decode: best?.decode.facts.workerId ?? "",
      predictedTtftMs: request.decision?.predictedTtftMs ?? -1,
      ttftMs: request.ttftMs ?? -1,
      tpotMs: request.tpotMs,
      gapMaxMs: request.gapMaxNanos / 1e6,
      tokens: request.tokenCount,
      attempts: request.attemptCount,
    });
  });
  return `${lines.join("\n")}\n`;
}

/** Largest multiple of a trace's rate, within [low, high], at which at least `share` of the requests meet both targets; 0: not even the lowest. */
export function goodputFactor(
  attainmentAt: (factor: number) => number,
  low: number,
  high: number,
  share = 0.9,
): number {
  let good = 0;
  let below = low;
  let above = high;
  if (attainmentAt(low) < share) return 0;
  good = low;
  // Up in steps of 1.6, then bisection to 3 %.
  for (let factor = low * 1.6; factor <= high; factor *= 1.6) {
    if (attainmentAt(factor) < share) {
      above = factor;
      break;
    }
    good = factor;
    below = factor;
  }
  while (above / below > 1.03) {
    const middle = Math.sqrt(above * below);
    if (attainmentAt(middle) >= share) {
      good = middle;
      below = middle;
    } else above = middle;
  }
  return good;
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}

function rank(sorted: readonly number[], share: number): number {
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0;
}
