import type { LocalCluster } from "@kvasir/cli";
import { afterAll, expect, test } from "vitest";
import {
  answerOf,
  chatBody,
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

/** Tokens and their log-probabilities, bit for bit, of every prompt under every sampling. */
async function answers(cluster: LocalCluster): Promise<{ tokens: unknown[]; promptTokens: number }> {
  const tokens: unknown[] = [];
  let promptTokens = 0;
  for (const prompt of PROMPTS) {
    for (const sampling of SAMPLINGS) {
      const fields = { ...sampling, max_tokens: 24, ignore_eos: true, logprobs: true, top_logprobs: 2 };
      const response = await post(cluster, chatBody(prompt, fields));
      expect(response.status).toBe(200);
      const answer = await answerOf(response);
      expect(answer.usage.completion_tokens).toBe(24);
      promptTokens += answer.usage.prompt_tokens;
      tokens.push(answer.choices[0].logprobs.content);
    }
  }
  return { tokens, promptTokens };
}

test("the same tokens through a mixed worker, through prefill and decode, and in chunks of 16, 64 and 512", async () => {
  const mixed = await startTiny({ prefill: 0, decode: 0, mixed: 1 });
  clusters.push(mixed);
  const expected = await answers(mixed);
  await expectNothingLeft(mixed);
  await mixed.stop();

  for (const stepTokens of [16, 64, 512]) {
    const split = await startTiny({ stepTokens });
    clusters.push(split);
    const found = await answers(split);
    expect(found.tokens).toEqual(expected.tokens);

    const decode = processOf(split, "decode");
    const prefill = processOf(split, "prefill");
    expect(await metric(decode, "kvasir_sidecar_prompt_tokens_computed_total")).toBe(0);
    expect(await metric(decode, "kvasir_sidecar_kv_bytes_received_total")).toBe(
      found.promptTokens * TINY_KV_BYTES_PER_TOKEN,
    );
    expect(await metric(prefill, "kvasir_sidecar_prompt_tokens_computed_total")).toBe(found.promptTokens);
    expect(await metric(prefill, "kvasir_sidecar_decode_tokens_computed_total")).toBe(0);
    expect(await metric(decode, "kvasir_sidecar_frames_refused_total")).toBe(0);
    await expectNothingLeft(split);
    await split.stop();
  }
}, 120_000);
