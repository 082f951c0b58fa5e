import { defineOptions, runMain } from "@kvasir/config";
import {
  type ClusterPlan,
  DEVICE_PROFILES,
  type DeviceProfile,
  type ProvisionedCluster,
  planCluster,
  provision,
  rateOf,
  type Trace,
} from "@kvasir/sim";
import { chosenProfile } from "./replay/device-profiles.ts";
import { readTrace } from "./replay/trace-file.ts";

const OFFERED_MAX = 10;

const options = defineOptions("kvasir plan", "finds the cluster that serves a trace best", {
  trace: { type: "string", env: "KVASIR_PLAN_TRACE", positional: true, required: true, help: "As for kvasir replay." },
  least: {
    type: "string",
    env: "KVASIR_PLAN_LEAST",
    default: "",
    choices: ["", "cost", "power"],
    help: "Find the clusters that serve the trace's own rate for the least cost or power. Else: the best goodput of --gpus devices.",
  },
  ratePercent: {
    type: "integer",
    env: "KVASIR_PLAN_RATE_PERCENT",
    default: 100,
    min: 1,
    help: "How fast requests come, of the trace's own rate.",
  },
  gpus: {
    type: "integer",
    env: "KVASIR_PLAN_GPUS",
    default: 8,
    min: 1,
    help: "Devices there are; with --least: workers of one kind, at most.",
  },
  ttftMs: { type: "integer", env: "KVASIR_PLAN_TTFT_MS", default: 1_000, min: 1, help: "Target for the first token." },
  tpotMs: { type: "integer", env: "KVASIR_PLAN_TPOT_MS", default: 60, min: 1, help: "Target for the mean gap." },
  profile: {
    type: "string",
    env: "KVASIR_PLAN_PROFILE",
    default: "a100-opt-13b",
    help: "Model on a device, several with commas, or a file made by kvasir profile steps; those with a name and -tp2, -tp4 are tried as well.",
  },
  count: {
    type: "integer",
    env: "KVASIR_PLAN_COUNT",
    default: 500,
    min: 1,
    help: "Requests of the trace to simulate.",
  },
  blockSize: { type: "integer", env: "KVASIR_PLAN_BLOCK_SIZE", default: 64, min: 1, help: "Tokens in a block." },
});

await runMain(options, async (values) => {
  const profiles = values.profile.split(",").flatMap(profilesNamed);
  const trace = readTrace({ file: values.trace, rate: values.ratePercent / 100, count: values.count, lengths: 1 });
  const objective = { ttftMs: values.ttftMs, tbtMs: values.tpotMs };
  process.stdout.write(
    `${trace.name}, ${rateOf(trace).toFixed(2)} requests/s; TTFT ≤ ${values.ttftMs} ms and mean TBT ≤ ${values.tpotMs} ms\n`,
  );
  const { gpus, blockSize } = values;
  if (values.least === "") planGoodput({ trace, objective, deviceCount: gpus, profiles, blockSize });
  else provisionFor({ trace, objective, least: values.least, profiles, workerMax: gpus, blockSize });
});

/** One that is known, with its degrees of tensor parallelism, or one from a file. */
function profilesNamed(name: string): DeviceProfile[] {
  const known = Object.entries(DEVICE_PROFILES).filter(([key]) => key === name || key.startsWith(`${name}-tp`));
  return known.length > 0 ? known.map(([, profile]) => profile) : [chosenProfile(name).profile];
}

function planGoodput(question: {
  readonly trace: Trace;
  readonly objective: { readonly ttftMs: number; readonly tbtMs: number };
  readonly deviceCount: number;
  readonly profiles: readonly DeviceProfile[];
  readonly blockSize: number;
}): void {
  const { deviceCount } = question;
  const plans = planCluster({ ...question, factors: [0.1, 64] }, (plan) =>
    process.stdout.write(`tried  ${line(plan, deviceCount)}\n`),
  );
  const [best] = plans;
  if (best === undefined) throw new Error(`no worker fits on ${deviceCount} devices; give more`);
  process.stdout.write(`best   ${line(best, deviceCount)}\n`);
}

function provisionFor(question: Parameters<typeof provision>[0]): void {
  const clusters = provision(question);
  if (clusters.length === 0) {
    throw new Error(`no cluster of up to ${question.workerMax} workers of a kind meets the targets; give more`);
  }
  for (const cluster of clusters.slice(0, OFFERED_MAX)) process.stdout.write(`${offerLine(cluster)}\n`);
}

function offerLine({ counts, profiles, dollarsPerHour, watts, attainment }: ProvisionedCluster): string {
  const workers = Object.entries(profiles).map(
    ([role, profile]) => `${counts[role as keyof typeof counts]} ${role} of ${degree(profile)}: ${profile.name}`,
  );
  return `${dollarsPerHour.toFixed(2)} $/h, ${(watts / 1_000).toFixed(1)} kW: ${workers.join(" + ")}; ${(100 * attainment).toFixed(1)} % meet both`;
}

function line({ profile, counts, goodputPerSecond, atTraceRate }: ClusterPlan, gpus: number): string {
  const workers = Object.entries(counts).map(([role, count]) => `${count} ${role}`);
  return `${workers.join(" + ")} of ${degree(profile)}: ${goodputPerSecond.toFixed(2)} good requests/s, ${(goodputPerSecond / gpus).toFixed(3)} a device; at the trace's rate ${(100 * atTraceRate.attainment).toFixed(1)} % meet both, mean TTFT ${atTraceRate.meanTtftMs.toFixed(0)} ms, TBT ${atTraceRate.meanTpotMs.toFixed(1)} ms`;
}

function degree({ deviceCount = 1 }: DeviceProfile): string {
  return deviceCount === 1 ? "1 device" : `${deviceCount} devices`;
}
