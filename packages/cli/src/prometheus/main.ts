import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { defineOptions, runMain } from "@kvasir/config";
import { checkPortIsFree } from "../up/check-port.ts";
import { watchForStop } from "../up/stop-request.ts";
import { ClusterFollower } from "./cluster-follower.ts";
import { startPrometheus } from "./prometheus-process.ts";

const CACHE = process.env.KVASIR_CACHE || join(import.meta.dirname, "../../../../.cache");
const RUN_DIR = join(CACHE, "run");
const LOOK_EVERY_MS = 1_000;

const options = defineOptions("npm run prometheus --", "Prometheus with our alerts over the cluster of npm run up", {
  programs: {
    type: "string",
    env: "KVASIR_PROMETHEUS",
    help: "Folder of the programs prometheus and promtool. Default: those that npm run prometheus found or fetched.",
  },
  port: { type: "integer", env: "KVASIR_PROMETHEUS_PORT", default: 9090, min: 1, max: 65_535, help: "Pages and API." },
  interval: {
    type: "integer",
    env: "KVASIR_PROMETHEUS_INTERVAL",
    default: 2,
    min: 1,
    help: "Seconds between scrapes.",
  },
});

await runMain(options, async ({ programs, port, interval }) => {
  if (programs === undefined) throw new Error("no Prometheus is named; start this with npm run prometheus");
  await checkPortIsFree(port, "npm run prometheus -- --port");
  mkdirSync(join(RUN_DIR, "logs"), { recursive: true });
  const stop = watchForStop(() => process.exit(130));
  const prometheus = await startPrometheus({
    ...{ programs, port, intervalS: interval, directory: join(RUN_DIR, "prometheus") },
    logFile: join(RUN_DIR, "logs/prometheus.log"),
  });
  print(`Prometheus   ${prometheus.url}/graph`);
  print(`alerts       ${prometheus.url}/alerts`);
  print("Ctrl-C ends it.");
  const follower = new ClusterFollower(prometheus, CACHE, print);
  await follower.look();
  const timer = setInterval(() => void follower.look(), LOOK_EVERY_MS);
  const end = await Promise.race([stop.requested, prometheus.exited]);
  clearInterval(timer);
  if (end !== undefined)
    throw new Error(`Prometheus ended (${end.signal ?? `code ${end.code}`}): ${prometheus.errorLines()}`);
  await prometheus.stop();
  print("stopped");
  process.exit(0);
});

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
