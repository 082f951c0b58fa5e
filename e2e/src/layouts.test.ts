import { cpSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { afterAll, beforeAll, expect, test } from "vitest";
import { answerOf, CACHE_DIR, chatBody, expectNothingLeft, metric, post, processOf, startTiny } from "./support.ts";

const PROMPTS = ["Who built the old mill?", "Tell me about the mountains of the north. ".repeat(12)];
/** Of one token in f32: 3 layers, keys and values, 4 heads of 16. */
const KV_BYTES_PER_TOKEN = 3 * 2 * 4 * 16 * 4;

let model: string;
beforeAll(async () => {
  // The tiny model with twice the heads of half the size: the matrices have the same shapes.
  const tiny = await resolveModel("tiny", CACHE_DIR, () => undefined);
  model = mkdtempSync(join(tmpdir(), "kvasir-heads-"));
  cpSync(tiny.directory, model, { recursive: true });
  const config = join(model, "config.json");
  const heads = { num_attention_heads: 8, num_key_value_heads: 4, head_dim: 16 };
  writeFileSync(config, JSON.stringify({ ...JSON.parse(readFileSync(config, "utf8")), ...heads }));
});

const clusters: LocalCluster[] = [];
afterAll(() => Promise.all(clusters.map((cluster) => cluster.stop())));

async function start(options: Parameters<typeof startTiny>[0]): Promise<LocalCluster> {
  const cluster = await startTiny({ model, ...options });
  clusters.push(cluster);
  return cluster;
}

const received = (cluster: LocalCluster) =>
  metric(processOf(cluster, "decode"), "kvasir_sidecar_kv_bytes_received_total");

/** Tokens and their log-probabilities, bit for bit. `salt`: shared, so that a prompt finds what the one before it left. */
async function answers(cluster: LocalCluster, salt?: string) {
  const tokens: unknown[] = [];
  let promptTokens = 0;
  let approximateTokens = 0;
  for (const prompt of PROMPTS) {
    for (const sampling of [{ temperature: 0 }, { temperature: 0.9, seed: 7 }]) {
      const fields = { ...sampling, max_tokens: 20, ignore_eos: true, logprobs: true, top_logprobs: 2 };
      const response = await post(cluster, chatBody(prompt, { ...fields, ...(salt ? { cache_salt: salt } : {}) }));
      expect(response.status).toBe(200);
      const answer = await answerOf(response);
      promptTokens += answer.usage.prompt_tokens;
      approximateTokens += answer.kvasir.approximate_prompt_tokens;
      tokens.push(answer.choices[0].logprobs.content);
    }
  }
  return { tokens, promptTokens, approximateTokens };
}

test("blocks of 16 in two shards hand over to blocks of 64 in four: the tokens of one worker with blocks of 32", async () => {
  const mixed = await start({ prefill: 0, decode: 0, mixed: 1, kvDtype: "f32" });
  const expected = await answers(mixed);
  await mixed.stop();

  const kvByRole = { prefill: { blockSize: 16, shards: 2 }, decode: { blockSize: 64, shards: 4 } };
  const split = await start({ kvDtype: "f32", stepTokens: 64, kvByRole });
  const found = await answers(split);
  expect(found.tokens).toEqual(expected.tokens);
  const decode = processOf(split, "decode");
  expect(await metric(decode, "kvasir_sidecar_prompt_tokens_computed_total")).toBe(0);
  await expect.poll(() => received(split)).toBe(found.promptTokens * KV_BYTES_PER_TOKEN);
  expect(await metric(decode, "kvasir_sidecar_frames_refused_total")).toBe(0);
  expect(found.approximateTokens).toBe(0);
  // What is exact is kept: of a prompt that comes again only what lies behind the last block of 64 travels, or nothing.
  const warm = await answers(split, "warm");
  expect(warm.tokens).toEqual(expected.tokens);
  expect((await received(split)) / KV_BYTES_PER_TOKEN - found.promptTokens).toBeLessThan(0.7 * warm.promptTokens);
  await expectNothingLeft(split);
}, 90_000);

test("KV that is rounded on its way is told as approximate, and half of its bytes travel", async () => {
  const split = await start({ kvByRole: { prefill: { kvDtype: "f32", blockSize: 16 }, decode: { kvDtype: "bf16" } } });
  // With a salt that is shared: what is approximate answers its own request and is kept for no other.
  const { promptTokens, approximateTokens } = await answers(split, "warm");
  expect(approximateTokens).toBe(promptTokens);
  await expect.poll(() => received(split)).toBe((promptTokens * KV_BYTES_PER_TOKEN) / 2);
  await expectNothingLeft(split);
}, 60_000);
