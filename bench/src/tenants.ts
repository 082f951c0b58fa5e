import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type LocalCluster, startLocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { rankSumP } from "./lib/rank-sum.ts";
import { median, option, percentile, publish, REPOSITORY, table } from "./lib/report.ts";

// Whether a tenant can tell by the time to the first token that another one has sent a text: a text that one key has in the store, sent with
// other keys, beside texts that nobody sent, in turn. The workers' pools hold about one prompt, so that hits come from the store.
const ROUNDS = Number(option("rounds", "60"));
const TOKENS = Number(option("tokens", "1600"));
const MODEL = option("model", "tiny");
/** Below it two samples are called different. One run in a thousand says so of equal ones. */
const ALPHA = 0.001;
const TINY_KV_BYTES_PER_TOKEN = 768;

const model = await resolveModel(MODEL, join(REPOSITORY, ".cache"), (line) => process.stderr.write(`${line}\n`));
const cluster = await startLocalCluster({
  ...{ model: model.directory, servedModelName: model.servedName, port: 0, threadsPerSidecar: 1, stores: 1 },
  kvBytes: `${Math.ceil(1.5 * TOKENS * Number(option("kv-bytes-per-token", `${TINY_KV_BYTES_PER_TOKEN}`)))}`,
  logDir: mkdtempSync(join(tmpdir(), "kvasir-bench-")),
  extraFlags: { store: ["--admission", "all"] },
});
const samples = { own: [] as number[], foreign: [] as number[], fresh: [] as number[] };
let foreignHits = 0;
try {
  for (let round = -3; round < ROUNDS; round++) {
    const asks = {
      own: () => measure(cluster, "owner", 0),
      foreign: () => measure(cluster, `stranger ${round}`, 0),
      fresh: () => measure(cluster, `stranger ${round}`, 1_000 + round),
    };
    // Each comes first, in the middle and last as often as the others.
    const names = ["own", "foreign", "fresh"] as const;
    for (let place = 0; place < names.length; place++) {
      const name = names[(place + round + names.length) % names.length] ?? "own";
      const { ttftMs, storeTokens, cachedTokens } = await asks[name]();
      if (round < 0) continue;
      if (name === "own" && storeTokens === 0) continue;
      if (name !== "own") foreignHits += cachedTokens;
      samples[name].push(ttftMs);
    }
  }
} finally {
  await cluster.stop();
}
const { own, foreign, fresh } = samples;
const p = { foreign: rankSumP(foreign, fresh), own: rankSumP(own, fresh) };
const row = (name: string, values: readonly number[]) => [
  ...[name, String(values.length), median(values).toFixed(1)],
  ...[percentile(values, 10).toFixed(1), percentile(values, 90).toFixed(1)],
];
const rows = [
  row("own text, from the store", own),
  row("another key's text", foreign),
  row("a text that nobody sent", fresh),
];
publish(
  "tenants",
  "What the first token's time tells of other tenants' texts: nothing",
  `Prompts of ${TOKENS} tokens, ${model.servedName}, one request at a time, in turn, through 1 prefill and 1 decode worker and a store that has the text of one key. TTFT as the gateway measures it.

${table(["prompt", "requests", "median ms", "p10 ms", "p90 ms"], rows)}

Rank-sum test (two-sided): another key's text beside one that nobody sent p = ${p.foreign.toPrecision(2)}; the own text beside it p = ${p.own.toPrecision(2)}, so that
a difference of that size would have been seen. Cached tokens of the other keys: ${foreignHits}.`,
);
const verdicts = [
  foreignHits > 0 && `${foreignHits} tokens of another key's text were cached`,
  p.foreign < ALPHA && `another key's text can be told from a new one (p = ${p.foreign})`,
  (own.length < 10 || p.own >= ALPHA) &&
    `${own.length} hits of the store cannot be told either (p = ${p.own}): nothing is shown`,
].filter((verdict) => typeof verdict === "string");
for (const verdict of verdicts) process.stderr.write(`${verdict}\n`);
process.exit(verdicts.length === 0 ? 0 : 1);

async function measure(cluster: LocalCluster, key: string, text: number) {
  const prompt = Array.from(
    { length: TOKENS },
    (_, index) => 3 + ((index * 31 + text * 7 + Math.floor(index / 40)) % 90),
  );
  const response = await fetch(`${cluster.gatewayUrl}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
    body: JSON.stringify({ model: model.servedName, prompt, max_tokens: 2, temperature: 0, ignore_eos: true }),
  });
  if (response.status !== 200) throw new Error(`HTTP ${response.status}: ${await response.text()}`);
  const { usage, kvasir } = (await response.json()) as Answer;
  const { store_dram, store_disk } = kvasir.cached_tokens;
  return {
    ttftMs: kvasir.ttft_ms,
    storeTokens: store_dram + store_disk,
    cachedTokens: usage.prompt_tokens_details.cached_tokens,
  };
}

interface Answer {
  readonly usage: { readonly prompt_tokens_details: { readonly cached_tokens: number } };
  readonly kvasir: {
    readonly ttft_ms: number;
    readonly cached_tokens: { readonly store_dram: number; readonly store_disk: number };
  };
}
