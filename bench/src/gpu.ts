import { mkdirSync } from "node:fs";
import { type LocalCluster, startLocalCluster } from "@kvasir/cli";
import { handoverOf } from "./lib/handover-trace.ts";
import { option, percentile, table } from "./lib/report.ts";
import { keepAliveAgent, runLoad, type SseTimes, streamOnce } from "./lib/sse-load.ts";

// Tokens a second through a gateway, and hand-overs, with a prefill and a decode worker on one GPU: `scripts/gpu-run.sh` calls it with the model that
// it wrote, on a machine where nothing is installed. `--tiny` tries it on a simulated GPU.
const TINY = process.argv.includes("--tiny");
const MODEL = option("model", "");
const LOGS = option("logs", "");
/** Streams at a time, tokens of the prompt about, tokens out. */
const LOADS: readonly (readonly [number, number, number])[] = TINY
  ? [
      [1, 30, 3],
      [2, 30, 3],
    ]
  : [
      [1, 1000, 256],
      [16, 1000, 256],
      [64, 1000, 256],
      [8, 4000, 32],
    ];
const WORDS = "The mill by the river was built by a mason who lived in the town. ";
const WORDS_TOKENS = 16;
/** A request's hand-over is read from its trace; a sample of them suffices. */
const TRACED = 32;

if (MODEL === "" || LOGS === "") throw new Error("gpu.ts needs --model FOLDER and --logs FOLDER");
mkdirSync(LOGS, { recursive: true });
const cluster = await startLocalCluster({
  ...{ model: MODEL, servedModelName: "model", port: 0, prefill: 1, decode: 1, mixed: 0, logDir: LOGS },
  ...{ device: "cuda:0", stepTokens: TINY ? 64 : 4096 },
  // Each finds the whole card's memory and takes a share of it.
  ...(TINY ? { kvBytes: "4MiB" } : { kvMemoryPercent: 40 }),
  // Whatever is measured is computed and handed over whole.
  env: { KVASIR_PREFIX_CACHING: "off" },
});
try {
  await load(cluster, TINY ? 1 : 16, TINY ? 30 : 1000, TINY ? 3 : 16);
  const rows: string[][] = [];
  for (const [concurrency, prompt, tokens] of LOADS) {
    const requests = concurrency * (TINY ? 1 : concurrency > 16 ? 2 : 4);
    const { streams, wallMs } = await load(cluster, concurrency, prompt, tokens, requests);
    const traced = streams.slice(-TRACED);
    const handovers = await Promise.all(traced.map(({ traceId }) => handoverOf(cluster, traceId)));
    const pair = (values: readonly number[]) => [50, 99].map((p) => percentile(values, p).toFixed(2)).join(" / ");
    rows.push([
      ...[`${concurrency}`, `${requests}`, `${prompt}`, `${tokens}`],
      ((requests * tokens) / (wallMs / 1000)).toFixed(0),
      pair(streams.map(({ ttftMs }) => ttftMs)),
      pair(streams.map(({ totalMs, ttftMs }) => (totalMs - ttftMs) / (tokens - 1))),
      pair(handovers.map(({ wholeMs }) => wholeMs)),
      percentile(
        handovers.map(({ bytes, transferMs }) => bytes / transferMs / 1e6),
        50,
      ).toFixed(2),
    ]);
  }
  const header = ["streams", "requests", "prompt, about", "tokens out", "tokens/s out"];
  const times = ["TTFT p50 / p99, ms", "TBT p50 / p99, ms", "hand-over p50 / p99, ms", "its pull, GB/s"];
  process.stdout.write(`${table([...header, ...times], rows)}\n`);
} finally {
  await cluster.stop();
}
process.exit(0);

/** Streams of `tokens` tokens each; each prompt begins differently. */
async function load(
  cluster: LocalCluster,
  concurrency: number,
  prompt: number,
  tokens: number,
  requests = concurrency,
): Promise<{ streams: readonly SseTimes[]; wallMs: number }> {
  const url = new URL(`${cluster.gatewayUrl}/v1/chat/completions`);
  const agent = keepAliveAgent(concurrency);
  const fields = { model: "model", max_tokens: tokens, temperature: 0, ignore_eos: true, stream: true };
  const text = WORDS.repeat(Math.ceil(prompt / WORDS_TOKENS));
  const body = (index: number) =>
    JSON.stringify({ ...fields, messages: [{ role: "user", content: `${index} ${performance.now()}: ${text}` }] });
  const result = await runLoad(requests, concurrency, (index) => streamOnce(url, body(index), agent));
  agent.destroy();
  return result;
}
