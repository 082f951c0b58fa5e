import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type LocalCluster, startLocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { type Handover, handoverOf } from "./lib/handover-trace.ts";
import { option, percentile, publish, REPOSITORY, table } from "./lib/report.ts";
import { keepAliveAgent, runLoad, type SseTimes, streamOnce } from "./lib/sse-load.ts";

// What a hand-over costs, read from the traces of requests under load, and what splitting a request costs or gains its client beside serving
// it whole on the same number of workers and threads.
const REQUESTS = Number(option("requests", "64"));
const TOKENS = Number(option("tokens", "48"));
const CONCURRENCY = option("concurrency", "1,16").split(",").map(Number);
const MODELS = option("models", "tiny,smollm2").split(",");
const QUESTION = "The mill by the river was built by a mason who lived in the town. ";

const handoverRows: string[][] = [];
const clientRows: string[][] = [];
for (const name of MODELS) {
  const model = await resolveModel(name, join(REPOSITORY, ".cache"), (line) => process.stderr.write(`${line}\n`));
  const common = {
    ...{ model: model.directory, servedModelName: model.servedName, port: 0, threadsPerSidecar: 1 },
    ...{ kvBytes: "512MiB", logDir: mkdtempSync(join(tmpdir(), "kvasir-bench-")) },
    // The same prompts again and again: each is to be handed over whole.
    env: { KVASIR_PREFIX_CACHING: "off" },
  };
  const split = await startLocalCluster({ ...common, prefill: 1, decode: 1, mixed: 0 });
  const aggregated = await startLocalCluster({ ...common, prefill: 0, decode: 0, mixed: 2 });
  try {
    for (const cluster of [split, aggregated]) await load(cluster, model.servedName, 8, 4);
    for (const concurrency of CONCURRENCY) {
      const requests = Math.max(REQUESTS, concurrency * 4);
      const streams = await load(split, model.servedName, requests, concurrency);
      const handovers = await Promise.all(streams.map(({ traceId }) => handoverOf(split, traceId)));
      const read = (of: (handover: Handover) => number) => pair(handovers.map(of));
      handoverRows.push([
        ...[model.servedName, String(concurrency), String(handovers.length)],
        read(({ wholeMs }) => wholeMs),
        read(({ verifiedMs }) => verifiedMs),
        read(({ joinMs }) => joinMs),
      ]);
      const whole2 = await load(aggregated, model.servedName, requests, concurrency);
      clientRows.push(
        clientRow(model.servedName, concurrency, "1 prefill + 1 decode", streams),
        clientRow(model.servedName, concurrency, "2 mixed", whole2),
      );
    }
  } finally {
    await Promise.all([split.stop(), aggregated.stop()]);
  }
}

publish(
  "handover",
  "What a hand-over costs",
  `Prompts of some 130 tokens, one prefill step each; ${TOKENS} tokens out; one compute thread a worker; gateway, router, workers and clients share the
machine. "whole" is from the end of the last prefill step on the source's device to the moment at which the decode worker sends the step that the
sequence joins, the last bytes' own time included: frames leave layer by layer, so most bytes have moved by then. Its two parts: until the last
block is verified, and from there to the step: the rest of the step that runs, and the wait for a processor where the two are busy. All are p50 / p99 in milliseconds.

${table(["model", "concurrent", "requests", "whole", "until verified", "until its step"], handoverRows)}

The same load on the same number of workers and threads, seen by the client (p50 / p99; the longest gap is that of each stream):

${table(["model", "concurrent", "workers", "TTFT ms", "mean TBT ms", "longest gap ms"], clientRows)}`,
);
process.exit(0);

function load(cluster: LocalCluster, model: string, requests: number, concurrency: number): Promise<SseTimes[]> {
  const url = new URL(`${cluster.gatewayUrl}/v1/chat/completions`);
  const agent = keepAliveAgent(concurrency);
  const fields = { max_tokens: TOKENS, temperature: 0, ignore_eos: true, stream: true };
  // Each prompt begins differently, so that no request finds its KV computed.
  const body = (index: number) =>
    JSON.stringify({
      model,
      messages: [{ role: "user", content: `${index} ${performance.now()}: ${QUESTION.repeat(8)}` }],
      ...fields,
    });
  const one = (index: number) => streamOnce(url, body(index), agent);
  return runLoad(requests, concurrency, one).then(({ streams }) => {
    agent.destroy();
    return [...streams];
  });
}

function clientRow(model: string, concurrency: number, workers: string, streams: readonly SseTimes[]): string[] {
  const read = (of: (stream: SseTimes) => number) => pair(streams.map(of));
  return [
    ...[model, String(concurrency), workers],
    ...[read((stream) => stream.ttftMs), read((stream) => stream.gapMeanMs), read((stream) => stream.gapMaxMs)],
  ];
}

function pair(values: readonly number[]): string {
  return `${percentile(values, 50).toFixed(2)} / ${percentile(values, 99).toFixed(2)}`;
}
