import { mkdtempSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { startLocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { cpuTimeMs } from "./lib/cpu-time.ts";
import { option, publish, REPOSITORY, table } from "./lib/report.ts";
import { keepAliveAgent, runLoad, streamOnce } from "./lib/sse-load.ts";

// What a decode step costs beside the device's own time, in a mixed worker under real traffic through the gateway. Two steps are in flight, so
// in a steady state the wall time of a step is the time from one answer to the next.
const TOKENS = Number(option("tokens", "128"));
const threads = Number(option("threads", String(Math.max(1, cpus().length - 1))));
const PARTS = ["wall", "device", "idle"] as const;

const rows: string[][] = [];
for (const name of option("models", "tiny,smollm2").split(",")) {
  const model = await resolveModel(name, join(REPOSITORY, ".cache"), (line) => process.stderr.write(`${line}\n`));
  const cluster = await startLocalCluster({
    ...{ model: model.directory, servedModelName: model.servedName, prefill: 0, decode: 0, mixed: 1, port: 0 },
    ...{ threadsPerSidecar: threads, kvBytes: "512MiB", logDir: mkdtempSync(join(tmpdir(), "kvasir-bench-")) },
  });
  try {
    const worker = cluster.processes.find((process) => process.kind === "mixed");
    if (worker?.adminAddress === undefined) throw new Error("the mixed worker tells no admin address");
    const adminAddress = worker.adminAddress;
    const url = new URL(`${cluster.gatewayUrl}/v1/chat/completions`);
    const fields = { max_tokens: TOKENS, temperature: 0, ignore_eos: true, stream: true };
    const body = JSON.stringify({
      model: model.servedName,
      messages: [{ role: "user", content: "Count." }],
      ...fields,
    });
    for (const batch of [1, 8, 32]) {
      const agent = keepAliveAgent(batch);
      await runLoad(batch, batch, () => streamOnce(url, body, agent));
      const before = { ...(await stepSeconds(adminAddress)), cpuMs: cpuTimeMs(worker.pid) };
      const requests = batch * 3;
      await runLoad(requests, batch, () => streamOnce(url, body, agent));
      const after = { ...(await stepSeconds(adminAddress)), cpuMs: cpuTimeMs(worker.pid) };
      const steps = after.count - before.count;
      const msPerStep = (part: (typeof PARTS)[number]) => (1000 * (after[part] - before[part])) / steps;
      rows.push([
        model.servedName,
        String(batch),
        msPerStep("device").toFixed(2),
        (msPerStep("wall") - msPerStep("device")).toFixed(2),
        msPerStep("idle").toFixed(3),
        `${((100 * msPerStep("idle")) / msPerStep("wall")).toFixed(1)} %`,
        ((after.cpuMs - before.cpuMs) / steps).toFixed(2),
      ]);
    }
  } finally {
    await cluster.stop();
  }
}
const header = [
  "model",
  "batch",
  "device ms",
  "wall − device ms",
  "device idle ms",
  "idle share",
  "worker CPU ms/step",
];
publish(
  "step-overhead",
  "What a decode step costs beside the device",
  `A mixed worker behind the gateway, ${TOKENS} tokens a stream, ${threads} compute thread(s); means over all steps of three rounds. Worker CPU is the Node process: plan, streams
to the gateway, metrics. Gateway, router and load generator share the machine.

${table(header, rows)}`,
);
process.exit(0);

async function stepSeconds(adminAddress: string): Promise<Record<(typeof PARTS)[number] | "count", number>> {
  const text = await (await fetch(`http://${adminAddress}/metrics`)).text();
  const sample = (name: string, part: string) => {
    const line = text.split("\n").find((line) => line.startsWith(`kvasir_step_seconds_${name}{part="${part}"} `));
    return Number(line?.split(" ")[1] ?? Number.NaN);
  };
  const sums = Object.fromEntries(PARTS.map((part) => [part, sample("sum", part)]));
  return { ...(sums as Record<(typeof PARTS)[number], number>), count: sample("count", "wall") };
}
