import type { WorkerRole } from "@kvasir/core";
import { PRODUCTION_DEFAULTS, rolesOf } from "./cluster-spec.ts";
import type { DeviceProfile } from "./device-profile.ts";
import { simulate } from "./simulation.ts";
import { type Objective, summarize } from "./summary.ts";
import type { Trace } from "./trace.ts";

export interface ProvisionQuestion {
  /** At the rate that is to be served. */
  readonly trace: Trace;
  readonly objective: Objective;
  /** What is to be least. */
  readonly least: "cost" | "power";
  /** The model on each kind of worker there could be, with prices. */
  readonly profiles: readonly DeviceProfile[];
  /** Workers of a role, at most. */
  readonly workerMax: number;
  readonly blockSize: number;
  /** Share of requests that must meet both targets. Default 0.9. */
  readonly share?: number;
}

/** A cluster that serves the trace within the targets. */
export interface ProvisionedCluster {
  readonly counts: Partial<Record<WorkerRole, number>>;
  /** Device of each role. */
  readonly profiles: Partial<Record<WorkerRole, DeviceProfile>>;
  readonly dollarsPerHour: number;
  readonly watts: number;
  readonly attainment: number;
}

/**
 * The smallest clusters that serve a trace within its targets, cheapest or least hungry first: for each kind of device the fewest mixed workers, and
 * for each pair of kinds the frontier of prefill and decode workers (with one less of either, too many requests are late). Splitwise's provisioning
 * (ISCA 2024: a sweep over both counts, throughput, cost or power under the objective), with unlike devices for the two phases as its HA cluster.
 */
export function provision(question: ProvisionQuestion): ProvisionedCluster[] {
  const { profiles, workerMax, least } = question;
  const found: ProvisionedCluster[] = [];
  for (const profile of profiles) {
    const mixed = smallest(1, workerMax, (count) => evaluate(question, { mixed: count }, { mixed: profile }));
    if (mixed !== undefined) found.push(mixed);
  }
  for (const prefill of profiles) {
    for (const decode of profiles) found.push(...frontier(question, prefill, decode));
  }
  const price = (cluster: ProvisionedCluster) => (least === "cost" ? cluster.dollarsPerHour : cluster.watts);
  return found.sort((a, b) => price(a) - price(b) || b.attainment - a.attainment);
}

function frontier(question: ProvisionQuestion, prefill: DeviceProfile, decode: DeviceProfile): ProvisionedCluster[] {
  const found: ProvisionedCluster[] = [];
  let decodeMax = question.workerMax;
  // With more prefill workers fewer decode workers are enough, never more.
  for (let count = 1; count <= question.workerMax; count++) {
    const cluster = smallest(1, decodeMax, (decodeCount) =>
      evaluate(question, { prefill: count, decode: decodeCount }, { prefill, decode }),
    );
    if (cluster === undefined) continue;
    const needed = cluster.counts.decode ?? 1;
    if (needed < decodeMax || found.length === 0) found.push(cluster);
    decodeMax = needed;
    if (needed === 1) break;
  }
  return found;
}

/** The least count within [low, high] whose cluster is good enough; undefined when the highest is not. */
function smallest(
  low: number,
  high: number,
  evaluateAt: (count: number) => ProvisionedCluster | undefined,
): ProvisionedCluster | undefined {
  let best = evaluateAt(high);
  if (best === undefined) return undefined;
  let from = low;
  let to = high;
  while (from < to) {
    const middle = (from + to) >>> 1;
    const cluster = evaluateAt(middle);
    if (cluster === undefined) from = middle + 1;
    else {
      best = cluster;
      to = middle;
    }
  }
  return best;
}

function evaluate(
  { trace, objective, blockSize, share = 0.9 }: ProvisionQuestion,
  counts: ProvisionedCluster["counts"],
  profiles: ProvisionedCluster["profiles"],
): ProvisionedCluster | undefined {
  const entries = Object.entries(profiles) as [WorkerRole, DeviceProfile][];
  const profile = entries[0]?.[1];
  if (profile === undefined) return undefined;
  const spec = { ...PRODUCTION_DEFAULTS, profile, profileByRole: profiles, blockSize, objectives: objective };
  const { attainment } = summarize(simulate({ ...spec, roles: rolesOf(counts) }, trace), objective);
  if (attainment < share) return undefined;
  const total = (of: (price: NonNullable<DeviceProfile["price"]>) => number) =>
    entries.reduce((sum, [role, { price, deviceCount = 1, name }]) => {
      if (price === undefined) throw new Error(`profile ${name} has no price; give one with a price`);
      return sum + of(price) * deviceCount * (counts[role] ?? 0);
    }, 0);
  const [dollarsPerHour, watts] = [total((price) => price.dollarsPerHour), total((price) => price.watts)];
  return { counts, profiles, dollarsPerHour, watts, attainment };
}
