import type { WorkerRole } from "@kvasir/core";
import { PRODUCTION_DEFAULTS, rolesOf } from "./cluster-spec.ts";
import type { DeviceProfile } from "./device-profile.ts";
import { simulate } from "./simulation.ts";
import { goodputFactor, type Objective, type RunSummary, summarize } from "./summary.ts";
import { rateOf, scaleRate, type Trace } from "./trace.ts";

export interface PlanQuestion {
  readonly trace: Trace;
  readonly objective: Objective;
  readonly deviceCount: number;
  /** The model on one worker, by degree of tensor parallelism. */
  readonly profiles: readonly DeviceProfile[];
  readonly blockSize: number;
  /** Slowest and fastest multiple of the trace's rate that is tried. */
  readonly factors: readonly [number, number];
}

/** One way to lay out the devices, with what it serves. */
export interface ClusterPlan {
  readonly profile: DeviceProfile;
  readonly counts: Partial<Record<WorkerRole, number>>;
  /** Requests per second of which nine in ten meet both targets; 0: not even at the lowest rate tried. */
  readonly goodputPerSecond: number;
  /** At the trace's own rate. */
  readonly atTraceRate: RunSummary;
}

/**
 * Every cluster of so many devices, best goodput first: all workers mixed, or prefill and decode workers in each proportion of eighths, for each
 * degree of tensor parallelism. The search of DistServe (OSDI 2024, algorithm 1) by simulation, but of prefill and decode together, since
 * placement may let decode workers compute prompts.
 */
export function planCluster(
  question: PlanQuestion,
  tried: (plan: ClusterPlan) => void = () => undefined,
): ClusterPlan[] {
  const plans: ClusterPlan[] = [];
  for (const profile of question.profiles) {
    const workerCount = Math.floor(question.deviceCount / (profile.deviceCount ?? 1));
    for (const counts of countsOf(workerCount)) {
      const plan = evaluate(question, profile, counts);
      tried(plan);
      plans.push(plan);
    }
  }
  return plans.sort(
    (a, b) => b.goodputPerSecond - a.goodputPerSecond || b.atTraceRate.attainment - a.atTraceRate.attainment,
  );
}

function countsOf(workerCount: number): Partial<Record<WorkerRole, number>>[] {
  if (workerCount < 1) return [];
  const prefillCounts = new Set(Array.from({ length: 7 }, (_, eighth) => Math.round((workerCount * (eighth + 1)) / 8)));
  const splits = [...prefillCounts].filter((prefill) => prefill >= 1 && prefill < workerCount);
  return [{ mixed: workerCount }, ...splits.map((prefill) => ({ prefill, decode: workerCount - prefill }))];
}

function evaluate(
  { trace, objective, blockSize, factors }: PlanQuestion,
  profile: DeviceProfile,
  counts: Partial<Record<WorkerRole, number>>,
): ClusterPlan {
  const run = (factor: number): RunSummary => {
    const spec = { ...PRODUCTION_DEFAULTS, profile, blockSize, roles: rolesOf(counts), objectives: objective };
    return summarize(simulate(spec, scaleRate(trace, factor)), objective);
  };
  const [low, high] = factors;
  const factor = goodputFactor((at) => run(at).attainment, low, high);
  return { profile, counts, goodputPerSecond: factor * rateOf(trace), atTraceRate: run(1) };
}
