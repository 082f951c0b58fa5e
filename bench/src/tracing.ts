import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort, type LocalCluster, startJaeger, startLocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { cpuTimeMs } from "./lib/cpu-time.ts";
import { median, option, percentile, publish, REPOSITORY, table } from "./lib/report.ts";
import { keepAliveAgent, runLoad, streamOnce } from "./lib/sse-load.ts";

// What tracing costs at full sampling: the same cluster twice, one that records nothing and one whose every span, sidecars' included, goes to
// a real Jaeger on this very machine. Rounds alternate, so that a ratio is of two neighbours in time.
const ROUNDS = Number(option("rounds", "7"));
const REQUESTS = Number(option("requests", "24"));
const STREAMS = Number(option("streams", "8"));
const TOKENS = Number(option("tokens", "32"));
const MODELS = option("models", "smollm2,tiny").split(",");

interface Round {
  readonly requestsPerSecond: number;
  readonly ttftMs: number;
  readonly cpuMsPerRequest: number;
}

const logDir = mkdtempSync(join(tmpdir(), "kvasir-bench-"));
const [otlp, otlpHttp, query] = await Promise.all([freePort(), freePort(), freePort()]);
const jaeger = await startJaeger({
  binary: process.env.KVASIR_JAEGER ?? "jaeger-all-in-one",
  ...{ ports: { otlp, otlpHttp, query }, traceCountMax: 5_000, logFile: join(logDir, "jaeger.log") },
});

const rows: string[][] = [];
for (const name of MODELS) {
  const model = await resolveModel(name, join(REPOSITORY, ".cache"), (line) => process.stderr.write(`${line}\n`));
  const common = {
    ...{ model: model.directory, servedModelName: model.servedName, prefill: 1, decode: 1, mixed: 0, port: 0 },
    ...{ threadsPerSidecar: 1, kvBytes: "256MiB", logDir },
  };
  const off = await startLocalCluster({ ...common, env: { OTEL_TRACES_SAMPLER: "always_off" } });
  const on = await startLocalCluster({ ...common, otlpEndpoint: jaeger.otlpEndpoint });
  // Tiny requests are short: as many more of them make a round of the same length.
  const requests = name === "tiny" ? REQUESTS * 10 : REQUESTS;
  try {
    for (const cluster of [off, on]) await round(cluster, model.servedName, requests);
    const offs: Round[] = [];
    const ons: Round[] = [];
    for (let index = 0; index < ROUNDS; index++) {
      // Who goes first takes turns as well.
      const order = index % 2 === 0 ? [off, on] : [on, off];
      for (const cluster of order)
        (cluster === off ? offs : ons).push(await round(cluster, model.servedName, requests));
    }
    const spans = await spansOfLastTrace(model.servedName);
    rows.push(...rowsOf(model.servedName, offs, ons, spans));
  } finally {
    await Promise.all([off.stop(), on.stop()]);
  }
}
await jaeger.stop();

publish(
  "tracing",
  "What tracing costs at full sampling",
  `One prefill and one decode worker behind the gateway, ${STREAMS} streams at a time of ${TOKENS} tokens; ${ROUNDS} rounds of each kind in turn, medians. "off" records no span;
"on" records every span and sends it to a Jaeger that shares the machine. The change is the median over pairs of neighbouring rounds, with the
quartiles of the pairs. CPU is that of gateway, router, workers and sidecars; Jaeger's own is not in it.

${table(["model", "tracing", "requests/s", "change", "TTFT p50 ms", "CPU ms/request", "change"], rows)}`,
);
process.exit(0);

async function round(cluster: LocalCluster, model: string, requests: number): Promise<Round> {
  const url = new URL(`${cluster.gatewayUrl}/v1/chat/completions`);
  const fields = { max_tokens: TOKENS, temperature: 0, ignore_eos: true, stream: true };
  const content = "Tell me about the old mill by the river. ".repeat(8);
  const body = JSON.stringify({ model, messages: [{ role: "user", content }], ...fields });
  const agent = keepAliveAgent(STREAMS);
  const before = cpuOf(cluster);
  const { streams, wallMs } = await runLoad(requests, STREAMS, () => streamOnce(url, body, agent));
  const cpuMs = cpuOf(cluster) - before;
  agent.destroy();
  return {
    requestsPerSecond: requests / (wallMs / 1_000),
    ttftMs: median(streams.map((stream) => stream.ttftMs)),
    cpuMsPerRequest: cpuMs / requests,
  };
}

function cpuOf(cluster: LocalCluster): number {
  const pids = cluster.processes
    .filter(({ kind }) => kind !== "redis")
    .flatMap(({ pid, sidecarPid }) => (sidecarPid === undefined ? [pid] : [pid, sidecarPid]));
  return pids.reduce((sum, pid) => sum + cpuTimeMs(pid), 0);
}

/** Proof that the spans arrived, and how many a request has. */
async function spansOfLastTrace(model: string): Promise<number> {
  const deadline = performance.now() + 10_000;
  for (;;) {
    const tags = encodeURIComponent(JSON.stringify({ "gen_ai.request.model": model }));
    const answer = await fetch(`${jaeger.uiUrl}/api/traces?service=kvasir-gateway&limit=20&tags=${tags}`);
    const { data } = (await answer.json()) as { readonly data: readonly { readonly spans: readonly object[] }[] };
    const count = Math.max(0, ...data.map(({ spans }) => spans.length));
    if (count >= 13) return count;
    if (performance.now() > deadline) throw new Error(`Jaeger has only ${count} spans of a request; see ${logDir}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

function rowsOf(model: string, offs: readonly Round[], ons: readonly Round[], spans: number): string[][] {
  const change = (read: (round: Round) => number) => {
    const ratios = ons.map((on, index) => read(on) / read(offs[index] ?? on) - 1);
    const percent = (value: number) => `${value >= 0 ? "+" : "−"}${Math.abs(100 * value).toFixed(1)} %`;
    return `${percent(median(ratios))} (${percent(percentile(ratios, 25))} to ${percent(percentile(ratios, 75))})`;
  };
  const cells = (rounds: readonly Round[]) => ({
    rate: median(rounds.map((round) => round.requestsPerSecond)).toFixed(1),
    ttft: median(rounds.map((round) => round.ttftMs)).toFixed(1),
    cpu: median(rounds.map((round) => round.cpuMsPerRequest)).toFixed(1),
  });
  const [off, on] = [cells(offs), cells(ons)];
  return [
    [model, "off", off.rate, "–", off.ttft, off.cpu, "–"],
    [
      model,
      `on, ${spans} spans a request`,
      on.rate,
      change((round) => round.requestsPerSecond),
      on.ttft,
      on.cpu,
      change((round) => round.cpuMsPerRequest),
    ],
  ];
}
