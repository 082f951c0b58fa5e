import type { LocalCluster } from "@kvasir/cli";
import OpenAI from "openai";
import { afterAll, beforeAll, expect, test } from "vitest";
import { startTiny } from "./support.ts";

let cluster: LocalCluster;
let openai: OpenAI;
beforeAll(async () => {
  cluster = await startTiny();
  openai = new OpenAI({ baseURL: `${cluster.gatewayUrl}/v1`, apiKey: "none", maxRetries: 0 });
}, 60_000);
afterAll(() => cluster?.stop());

const chat = {
  model: "tiny",
  messages: [{ role: "user" as const, content: "Who built the old mill?" }],
  temperature: 0,
};

test("streamed and whole answers are the same, with usage", async () => {
  const whole = await openai.chat.completions.create({ ...chat, max_tokens: 32 });
  const stream = await openai.chat.completions.create({
    ...chat,
    max_completion_tokens: 32,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage: unknown;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  expect(text).toBe(whole.choices[0]?.message.content);
  expect(usage).toEqual(whole.usage);
  expect(whole.usage?.completion_tokens).toBeLessThanOrEqual(32);
});

test("log-probabilities are of the tokens chosen, the likeliest first", async () => {
  const answer = await openai.chat.completions.create({ ...chat, max_tokens: 8, logprobs: true, top_logprobs: 3 });
  const content = answer.choices[0]?.logprobs?.content ?? [];
  expect(content).toHaveLength(8);
  for (const entry of content) {
    expect(entry.logprob).toBeLessThanOrEqual(0);
    expect(entry.top_logprobs).toHaveLength(3);
    // Greedy: what was chosen is what was likeliest.
    expect(entry.top_logprobs[0]).toMatchObject({ bytes: entry.bytes, logprob: entry.logprob });
  }
});

test("a stop string taken from the answer ends it there", async () => {
  const whole = (await openai.chat.completions.create({ ...chat, max_tokens: 40 })).choices[0]?.message.content ?? "";
  const stop = whole.slice(20, 23);
  const answer = await openai.chat.completions.create({ ...chat, max_tokens: 40, stop });
  expect(answer.choices[0]).toMatchObject({
    finish_reason: "stop",
    message: { content: whole.slice(0, whole.indexOf(stop)) },
  });
});

test("seeds decide: the same twice, another once", async () => {
  const sample = async (seed: number) =>
    (await openai.chat.completions.create({ ...chat, temperature: 1, seed, max_tokens: 24 })).choices[0]?.message
      .content;
  expect(await sample(11)).toBe(await sample(11));
  expect(await sample(12)).not.toBe(await sample(11));
});

test("completions, exact lengths, documents, models", async () => {
  const completion = await openai.completions.create({
    ...{ model: "tiny", prompt: "The old mill", max_tokens: 100, temperature: 0 },
    ...({ ignore_eos: true } as object),
  });
  expect(completion.usage?.completion_tokens).toBe(100);
  const plain = await openai.chat.completions.create({ ...chat, max_tokens: 4 });
  const withDocuments = await openai.chat.completions.create({
    ...{ ...chat, max_tokens: 4 },
    ...({ documents: [{ title: "Mill", text: "It was built by Peter Ludd." }] } as object),
  });
  expect(withDocuments.usage?.prompt_tokens).toBeGreaterThan((plain.usage?.prompt_tokens ?? 0) + 20);
  expect((await openai.models.list()).data.map((model) => model.id)).toEqual(["tiny"]);
});

test("what is wrong is told by name through the client's own error", async () => {
  const bad = openai.chat.completions.create({ ...chat, temperature: 3 });
  await expect(bad).rejects.toMatchObject({ status: 400, param: "temperature" });
  await expect(openai.chat.completions.create({ ...chat, tools: [] })).rejects.toMatchObject({
    status: 400,
    param: "tools",
  });
});
