import { existsSync, readFileSync } from "node:fs";
import {
  DEVICE_PROFILES,
  type DeviceProfile,
  parseTrace,
  rolesOf,
  SIMULATION_DEFAULTS,
  simulate,
  summarize,
} from "@kvasir/sim";
import { mockerReplay } from "./lib/dynamo-mocker.ts";
import { option, publish, table } from "./lib/report.ts";

// Requests simulated in a second: ours and NVIDIA Dynamo's mocker on one trace in Mooncake's format (--mooncake FILE), one after the other.
const WORKERS = Number(option("workers", "16"));
const COUNT = Number(option("requests", "12031"));
const file = option("mooncake", "");
if (!existsSync(file))
  throw new Error(`there is no trace ${JSON.stringify(file)}; name one in Mooncake's format with --mooncake FILE`);
const lines = readFileSync(file, "utf8").trim().split("\n").slice(0, COUNT);

const profile = DEVICE_PROFILES["h100-8b"] as DeviceProfile;
const trace = parseTrace("mooncake", lines.join("\n"));
const peer = mockerReplay(trace, { mixed: WORKERS }, 1, false);
const spec = { ...SIMULATION_DEFAULTS, profile, blockSize: 512, roles: rolesOf({ mixed: WORKERS }) };
const start = performance.now();
const cpuStart = process.cpuUsage();
const result = simulate(spec, trace);
const wallS = (performance.now() - start) / 1_000;
const { user, system } = process.cpuUsage(cpuStart);
const cpuS = (user + system) / 1e6;
const summary = summarize(result, { ttftMs: 1, tbtMs: 1 });
const steps = result.workers.reduce((sum, { use }) => sum + use.stepCount, 0);

const row = (name: string, wall: number, cpu: number) => [
  name,
  wall.toFixed(1),
  cpu.toFixed(1),
  Math.round(lines.length / wall).toString(),
  Math.round(lines.length / cpu).toString(),
];
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

Ours ran ${steps.toLocaleString("en")} steps: mean TTFT ${summary.meanTtftMs.toFixed(0)} ms, mean TBT ${summary.meanTpotMs.toFixed(1)} ms, ${(100 * summary.reuse).toFixed(0)} % of prompt tokens reused.`,
);
