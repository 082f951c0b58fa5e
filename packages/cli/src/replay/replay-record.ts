import type { PlacementDecision } from "@kvasir/core";
import type { SimulationResult } from "@kvasir/sim";

/** What became of one request of a trace, live or simulated. Times in milliseconds. */
export interface ReplayRecord {
  /** Since the beginning of the replay. */
  readonly arrivalMs: number;
  readonly promptTokenCount: number;
  /** For `kvasir explain`; empty of a simulated one, or without an answer. */
  readonly requestId: string;
  readonly outcome: "finished" | "refused" | "failed";
  /** As the client saw it; NaN without a token. */
  readonly ttftMs: number;
  /** Mean gap between tokens. */
  readonly tpotMs: number;
  readonly tokenCount: number;
  /** Where its prompt was computed and where it was decoded, and why there; empty when unknown. */
  readonly prefillWorker: string;
  readonly worker: string;
  readonly reason: string;
}

export function recordsFrom({ requests }: SimulationResult): ReplayRecord[] {
  return requests.map((request) => ({
    arrivalMs: request.trace.arrivalMs,
    promptTokenCount: request.trace.promptTokenCount,
    requestId: "",
    outcome: request.outcome === "finished" ? "finished" : request.outcome === "rejected" ? "refused" : "failed",
    ttftMs: request.ttftMs ?? Number.NaN,
    tpotMs: request.tpotMs,
    tokenCount: request.tokenCount,
    prefillWorker: workerOfPrompt(request.decision),
    worker: request.decision?.candidates[0].decode.facts.workerId ?? "",
    reason: request.decision?.reason ?? "",
  }));
}

function workerOfPrompt(decision: PlacementDecision | undefined): string {
  const [best] = decision?.candidates ?? [];
  return (best?.prefill ?? best?.decode)?.facts.workerId ?? "";
}

export interface Targets {
  readonly ttftMs: number;
  readonly tpotMs: number;
}

export function isMet(record: ReplayRecord, { ttftMs, tpotMs }: Targets): boolean {
  return record.outcome === "finished" && record.ttftMs <= ttftMs && record.tpotMs <= tpotMs;
}

/** What a replay at one rate came to. */
export interface RatePoint {
  /** Requests per second. */
  readonly rate: number;
  /** Share that met both targets. */
  readonly attainment: number;
}

export function ratePointOf(records: readonly ReplayRecord[], targets: Targets): RatePoint {
  const spanS = Math.max(1e-9, ((records.at(-1)?.arrivalMs ?? 0) - (records[0]?.arrivalMs ?? 0)) / 1_000);
  const met = records.filter((record) => isMet(record, targets)).length;
  return { rate: (records.length - 1) / spanS, attainment: met / Math.max(1, records.length) };
}

/** Lines for people: how many, how fast, how many within their targets. */
export function replaySummary(records: readonly ReplayRecord[], targets: Targets): string {
  const finished = records.filter(({ outcome }) => outcome === "finished");
  const count = (outcome: ReplayRecord["outcome"]) => records.filter((record) => record.outcome === outcome).length;
  const spanS = Math.max(1e-9, ((records.at(-1)?.arrivalMs ?? 0) - (records[0]?.arrivalMs ?? 0)) / 1_000);
  const met = records.filter((record) => isMet(record, targets)).length;
  const quantiles = (values: readonly number[]) => {
    const sorted = [...values].sort((a, b) => a - b);
    const at = (share: number) => (sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN).toFixed(1);
    const mean = values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
    return `mean ${mean.toFixed(1)}, p50 ${at(0.5)}, p90 ${at(0.9)}, p99 ${at(0.99)} ms`;
  };
  return [
    `${records.length} requests in ${spanS.toFixed(1)} s (${((records.length - 1) / spanS).toFixed(2)}/s): ${count("finished")} finished, ${count("refused")} refused, ${count("failed")} failed`,
    `TTFT  ${quantiles(finished.map(({ ttftMs }) => ttftMs))}`,
    `TBT   ${quantiles(finished.map(({ tpotMs }) => tpotMs))}`,
    ...slowest(finished),
    `${((100 * met) / Math.max(1, records.length)).toFixed(1)} % met TTFT ≤ ${targets.ttftMs} ms and mean TBT ≤ ${targets.tpotMs} ms: ${(met / spanS).toFixed(2)} good requests/s`,
    "",
  ].join("\n");
}

/** Where to look first. */
function slowest(finished: readonly ReplayRecord[]): readonly string[] {
  const [worst] = finished.filter(({ requestId }) => requestId !== "").sort((a, b) => b.ttftMs - a.ttftMs);
  if (worst === undefined) return [];
  return [`slowest first token: ${worst.ttftMs.toFixed(1)} ms; npm run kvasir -- explain ${worst.requestId}`];
}
