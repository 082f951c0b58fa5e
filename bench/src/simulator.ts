import { existsSync, readFileSync } from "node:fs";
import {
  DEVICE_PROFILES,
  type DeviceProfile,
  parseTrace,
  rolesOf,
  SIMULATION_DEFAULTS,
  type SimulationResult,
  type SimulationSpec,
  scaleRate,
  simulate,
  sliceTrace,
  summarize,
  type Trace,
} from "@kvasir/sim";
import { mockerReplay } from "./lib/dynamo-mocker.ts";
import { option, publish, table } from "./lib/report.ts";

// Requests simulated in a second: ours and NVIDIA Dynamo's mocker on one trace in Mooncake's format (--mooncake FILE), one after the other.
const WORKERS = Number(option("workers", "16"));
const COUNT = Number(option("requests", "12031"));
const LARGE_COUNT = 3_000;
const file = option("mooncake", "");
if (!existsSync(file))
  throw new Error(`there is no trace ${JSON.stringify(file)}; name one in Mooncake's format with --mooncake FILE`);
const lines = readFileSync(file, "utf8").trim().split("\n").slice(0, COUNT);

const profile = DEVICE_PROFILES["h100-8b"] as DeviceProfile;
const trace = parseTrace("mooncake", lines.join("\n"));
const peer = mockerReplay(trace, { mixed: WORKERS }, 1, false);
const spec = { ...SIMULATION_DEFAULTS, profile, blockSize: 512, roles: rolesOf({ mixed: WORKERS }) };
const { result, wallS, cpuS } = timed(spec, trace);
const summary = summarize(result, { ttftMs: 1, tbtMs: 1 });
const steps = result.workers.reduce((sum, { use }) => sum + use.stepCount, 0);

const row = (name: string, wall: number, cpu: number) => [
  name,
  wall.toFixed(1),
  cpu.toFixed(1),
  Math.round(lines.length / wall).toString(),
  Math.round(lines.length / cpu).toString(),
];
/** Fleets, each with as many times the trace's rate as it has workers for 4. */
const largeRows = [256, 1_024].map((workers) => {
  const roles = rolesOf({ prefill: workers / 2, decode: workers / 2 });
  const objectives = { ttftMs: 15_000, tbtMs: 40 };
  const requests = sliceTrace(trace, 0, LARGE_COUNT);
  const large = timed({ ...spec, roles, objectives }, scaleRate(requests, workers / 4));
  const told = summarize(large.result, objectives);
  return [
    ...[workers.toLocaleString("en"), LARGE_COUNT.toLocaleString("en"), (large.result.endMs / 1_000).toFixed(0)],
    ...[large.cpuS.toFixed(1), Math.round(LARGE_COUNT / large.cpuS).toString()],
    ...[`${(100 * told.attainment).toFixed(1)} %`, told.meanTtftMs.toFixed(0)],
  ];
});

publish(
  "simulator",
  "Speed of the simulator",
  `${lines.length.toLocaleString("en")} requests of Mooncake's conversation trace at its own rate on ${WORKERS} workers that do both phases. Ours runs the production router, schedulers and
prefix caches in Node on one thread; Dynamo's (ai-dynamo-runtime 1.6.1, Rust) its mock scheduler behind its KV router, with a timing model of its own, so that only
the speeds are comparable. On a busy machine the time that a process had (CPU) tells more than the time that passed.

${table(
  ["simulator", "wall s", "CPU s", "requests/s, wall", "requests/s, CPU"],
  [row("Kvasir", wallS, cpuS), ...(peer === undefined ? [] : [row("Dynamo mocker", peer.wallS, peer.cpuS)])],
)}

Ours ran ${steps.toLocaleString("en")} steps: mean TTFT ${summary.meanTtftMs.toFixed(0)} ms, mean TBT ${summary.meanTpotMs.toFixed(1)} ms, ${(100 * summary.reuse).toFixed(0)} % of prompt tokens reused.

Fleets, half of whose workers prefill, under targets of 15 s and 40 ms:

${table(["workers", "requests", "virtual s", "CPU s", "requests/s, CPU", "met both targets", "mean TTFT ms"], largeRows)}`,
);

function timed(spec: SimulationSpec, trace: Trace): { result: SimulationResult; wallS: number; cpuS: number } {
  const start = performance.now();
  const before = process.cpuUsage();
  const result = simulate(spec, trace);
  const { user, system } = process.cpuUsage(before);
  return { result, wallS: (performance.now() - start) / 1_000, cpuS: (user + system) / 1e6 };
}
