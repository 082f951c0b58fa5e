import { defineOptions, runMain } from "@kvasir/config";
import { type ClusterPlan, DEVICE_PROFILES, type DeviceProfile, planCluster, rateOf } from "@kvasir/sim";
import { readTrace } from "./replay/trace-file.ts";

const options = defineOptions("kvasir plan", "finds the cluster of so many devices that serves a trace best", {
  trace: { type: "string", env: "KVASIR_PLAN_TRACE", positional: true, required: true, help: "As for kvasir replay." },
  gpus: { type: "integer", env: "KVASIR_PLAN_GPUS", default: 8, min: 1, help: "Devices there are." },
  ttftMs: { type: "integer", env: "KVASIR_PLAN_TTFT_MS", default: 1_000, min: 1, help: "Target for the first token." },
  tpotMs: { type: "integer", env: "KVASIR_PLAN_TPOT_MS", default: 60, min: 1, help: "Target for the mean gap." },
  profile: {
    type: "string",
    env: "KVASIR_PLAN_PROFILE",
    default: "a100-opt-13b",
    help: "Model on a device; those with this name and -tp2, -tp4 are tried as well.",
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
  const profiles = Object.entries(DEVICE_PROFILES)
    .filter(([name]) => name === values.profile || name.startsWith(`${values.profile}-tp`))
    .map(([, profile]) => profile);
  if (profiles.length === 0) {
    throw new Error(`there is no profile ${values.profile}; use ${Object.keys(DEVICE_PROFILES).join(", ")}`);
  }
  const trace = readTrace({ file: values.trace, rate: 1, count: values.count, lengths: 1 });
  const objective = { ttftMs: values.ttftMs, tbtMs: values.tpotMs };
  process.stdout.write(
    `${trace.name}, ${rateOf(trace).toFixed(2)} requests/s; TTFT ≤ ${values.ttftMs} ms and mean TBT ≤ ${values.tpotMs} ms on ${values.gpus} devices\n`,
  );
  const question = {
    trace,
    objective,
    deviceCount: values.gpus,
    profiles,
    blockSize: values.blockSize,
    factors: [0.1, 64] as const,
  };
  const plans = planCluster(question, (plan) => process.stdout.write(`tried  ${line(plan, values.gpus)}\n`));
  const [best] = plans;
  if (best === undefined) throw new Error(`no worker fits on ${values.gpus} devices; give more`);
  process.stdout.write(`best   ${line(best, values.gpus)}\n`);
});

function line({ profile, counts, goodputPerSecond, atTraceRate }: ClusterPlan, gpus: number): string {
  const workers = Object.entries(counts).map(([role, count]) => `${count} ${role}`);
  return `${workers.join(" + ")} of ${degree(profile)}: ${goodputPerSecond.toFixed(2)} good requests/s, ${(goodputPerSecond / gpus).toFixed(3)} a device; at the trace's rate ${(100 * atTraceRate.attainment).toFixed(1)} % meet both, mean TTFT ${atTraceRate.meanTtftMs.toFixed(0)} ms, TBT ${atTraceRate.meanTpotMs.toFixed(1)} ms`;
}

function degree({ deviceCount = 1 }: DeviceProfile): string {
  return deviceCount === 1 ? "1 device" : `${deviceCount} devices`;
}
