import type { LocalCluster } from "@kvasir/cli";
import { afterAll, expect, test } from "vitest";
import {
  answerOf,
  chatBody,
  expectMoved,
  expectNothingLeft,
  metric,
  post,
  processOf,
  startTiny,
  TINY_KV_BYTES_PER_TOKEN,
} from "./support.ts";

const PROMPTS = [
  "Who built the old mill?",
  "Tell me about the mountains of the north. ".repeat(12),
  "Name three rivers of Europe and the cities on their banks. ".repeat(25),
];
const SAMPLINGS = [
  { temperature: 0 },
  { temperature: 0.8, top_p: 0.9, seed: 7 },
  { temperature: 1.3, top_k: 40, seed: -123456789 },
];

const clusters: LocalCluster[] = [];
afterAll(() => Promise.all(clusters.map((cluster) => cluster.stop())));

interface Answers {
  readonly tokens: unknown[];
  readonly promptTokens: number;
  readonly cachedTokens: number[];
}

/** Tokens and their log-probabilities, bit for bit, of every prompt under every sampling. `salt`: shared, so that prompts are cached. */
async function answers(cluster: LocalCluster, salt?: string): Promise<Answers> {
  const tokens: unknown[] = [];
  const cachedTokens: number[] = [];
  let promptTokens = 0;
  for (const prompt of PROMPTS) {
    for (const sampling of SAMPLINGS) {
      const fields = { ...sampling, max_tokens: 24, ignore_eos: true, logprobs: true, top_logprobs: 2 };
      const response = await post(cluster, chatBody(prompt, { ...fields, ...(salt ? { cache_salt: salt } : {}) }));
      expect(response.status).toBe(200);
      const answer = await answerOf(response);
      expect(answer.usage.completion_tokens).toBe(24);
      promptTokens += answer.usage.prompt_tokens;
      cachedTokens.push(answer.usage.prompt_tokens_details.cached_tokens);
      tokens.push(answer.choices[0].logprobs.content);
    }
  }
  return { tokens, promptTokens, cachedTokens };
}

test("the same tokens, cold and warm, through a mixed worker, through prefill and decode, and in chunks of 16, 64 and 512", async () => {
  const mixed = await startTiny({ prefill: 0, decode: 0, mixed: 1 });
  clusters.push(mixed);
  const expected = await answers(mixed);
  const computed = async (cluster: LocalCluster) => {
    const workers = cluster.processes.filter(({ kind }) => kind === "prefill" || kind === "decode" || kind === "mixed");
    const counts = workers.map((worker) => metric(worker, "kvasir_sidecar_prompt_tokens_computed_total"));
    return (await Promise.all(counts)).reduce((sum, count) => sum + count);
  };
  // A sidecar's counters are asked for now and then, and waited for only so long.
  const expectComputed = (cluster: LocalCluster, count: number) => expect.poll(() => computed(cluster)).toBe(count);
  /** What was cached cold is cached warm for the two other samplings of each prompt; the sidecars compute the rest and no more. */
  const expectWarm = async (cluster: LocalCluster, before: number) => {
    await expectComputed(cluster, before);
    const warm = await answers(cluster, "warm");
    expect(warm.tokens).toEqual(expected.tokens);
    const cached = warm.cachedTokens.reduce((sum, count) => sum + count);
    expect(cached).toBeGreaterThan(0.5 * warm.promptTokens);
    await expectComputed(cluster, before + warm.promptTokens - cached);
  };
  expect(expected.cachedTokens.every((count) => count === 0)).toBe(true);
  await expectWarm(mixed, expected.promptTokens);
  await expectNothingLeft(mixed);
  await mixed.stop();

  for (const stepTokens of [16, 64, 512]) {
    const split = await startTiny({ stepTokens });
    clusters.push(split);
    const found = await answers(split);
    expect(found.tokens).toEqual(expected.tokens);

    const decode = processOf(split, "decode");
    const prefill = processOf(split, "prefill");
    const counted = () => metric(prefill, "kvasir_sidecar_prompt_tokens_computed_total");
    await expect.poll(counted).toBe(found.promptTokens);
    const received = () => metric(decode, "kvasir_sidecar_kv_bytes_received_total");
    await expect.poll(received).toBeGreaterThan((found.promptTokens * TINY_KV_BYTES_PER_TOKEN) / 2);
    expectMoved(await received(), found.promptTokens);
    expect(await metric(decode, "kvasir_sidecar_prompt_tokens_computed_total")).toBe(0);
    expect(await metric(prefill, "kvasir_sidecar_decode_tokens_computed_total")).toBe(0);
    expect(await metric(decode, "kvasir_sidecar_frames_refused_total")).toBe(0);
    await expectWarm(split, found.promptTokens);
    await expectNothingLeft(split);
    await split.stop();
  }
}, 120_000);
