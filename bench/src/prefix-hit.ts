import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type LocalCluster, startLocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { median, option, publish, REPOSITORY, table } from "./lib/report.ts";

// Time to the first token of a long prompt that was there before, beside the same prompt cold, in turn: a salt of its own makes a request cold.
const ROUNDS = Number(option("rounds", "7"));
const TOKENS = Number(option("tokens", "1500"));
const MODELS = option("models", "smollm2").split(",");
const SHAPES = [
  { name: "1 mixed", prefill: 0, decode: 0, mixed: 1 },
  { name: "1 prefill + 1 decode", prefill: 1, decode: 1, mixed: 0 },
];

const rows: string[][] = [];
for (const name of MODELS) {
  const model = await resolveModel(name, join(REPOSITORY, ".cache"), (line) => process.stderr.write(`${line}\n`));
  for (const { name: shape, ...workers } of SHAPES) {
    const logDir = mkdtempSync(join(tmpdir(), "kvasir-bench-"));
    const cluster = await startLocalCluster({
      ...{ model: model.directory, servedModelName: model.servedName, port: 0, threadsPerSidecar: 1 },
      ...{ ...workers, kvBytes: "512MiB", logDir },
    });
    try {
      await measure(cluster, model.servedName, "warm-up");
      const cold: Measured[] = [];
      const warm: Measured[] = [];
      for (let round = 0; round < ROUNDS; round++) {
        cold.push(await measure(cluster, model.servedName, `cold ${round}`));
        warm.push(await measure(cluster, model.servedName, `cold ${round}`));
      }
      const [coldMs, warmMs] = [cold, warm].map((times) => median(times.map(({ ttftMs }) => ttftMs)));
      rows.push([
        ...[model.servedName, shape, String(warm[0]?.promptTokens), String(warm[0]?.cachedTokens)],
        ...[(coldMs ?? 0).toFixed(1), (warmMs ?? 0).toFixed(1), ((coldMs ?? 0) / (warmMs ?? 1)).toFixed(1)],
      ]);
      if (cold.some(({ cachedTokens }) => cachedTokens > 0)) throw new Error("a cold request found something cached");
    } finally {
      await cluster.stop();
    }
  }
}
publish(
  "prefix-hit",
  "The first token of a prompt that was there before",
  `Each prompt is sent twice under a salt of its own, one request at a time; medians over ${ROUNDS} of them, as the gateway measures, one compute
thread a worker. With a prefill and a decode worker the second request is a full hit at the decode worker: no prefill worker is asked and nothing travels.

${table(["model", "workers", "prompt tokens", "cached", "cold TTFT ms", "warm TTFT ms", "cold / warm"], rows)}`,
);
process.exit(0);

interface Measured {
  readonly ttftMs: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
}

async function measure(cluster: LocalCluster, modelName: string, salt: string): Promise<Measured> {
  const prompt = Array.from({ length: TOKENS }, (_, index) => 300 + ((index * 31) % 1_000));
  const fields = { max_tokens: 4, temperature: 0, ignore_eos: true, cache_salt: salt };
  const response = await fetch(`${cluster.gatewayUrl}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: modelName, prompt, ...fields }),
  });
  if (response.status !== 200) throw new Error(`HTTP ${response.status}: ${await response.text()}`);
  const { usage, kvasir } = (await response.json()) as Answer;
  return {
    ttftMs: kvasir.ttft_ms,
    promptTokens: usage.prompt_tokens,
    cachedTokens: usage.prompt_tokens_details.cached_tokens,
  };
}

interface Answer {
  readonly usage: {
    readonly prompt_tokens: number;
    readonly prompt_tokens_details: { readonly cached_tokens: number };
  };
  readonly kvasir: { readonly ttft_ms: number };
}
