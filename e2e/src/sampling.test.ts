import type { LocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { loadTokenizer } from "@kvasir/tokenizer";
import { afterAll, beforeAll, expect, test } from "vitest";
import { CACHE_DIR, post, startTiny } from "./support.ts";

let split: LocalCluster;
let mixed: LocalCluster;
beforeAll(async () => {
  [split, mixed] = await Promise.all([startTiny(), startTiny({ prefill: 0, decode: 0, mixed: 1 })]);
}, 60_000);
afterAll(() => Promise.all([split?.stop(), mixed?.stop()]));

const base = {
  model: "tiny",
  prompt: "the old mill by the sea",
  max_tokens: 48,
  seed: 7,
  ignore_eos: true,
  logprobs: 0,
};

interface Completion {
  readonly choices: readonly [
    {
      readonly text: string;
      readonly finish_reason: string;
      readonly logprobs: {
        readonly tokens: readonly string[];
        readonly token_logprobs: readonly (number | null)[];
        readonly top_logprobs: readonly (Readonly<Record<string, number>> | null)[];
      };
      readonly prompt_logprobs?: readonly (Readonly<Record<string, { logprob: number; rank: number }>> | null)[];
    },
  ];
  readonly usage: { readonly prompt_tokens: number; readonly completion_tokens: number };
}

async function complete(cluster: LocalCluster, fields: object): Promise<Completion> {
  const response = await post(cluster, { ...base, ...fields }, {}, "/v1/completions");
  expect(response.status, await response.clone().text()).toBe(200);
  return (await response.json()) as Completion;
}

const tokensOf = (answer: Completion) => answer.choices[0].logprobs.tokens;

test.each([
  ["a repetition penalty", { temperature: 0.8, repetition_penalty: 1.5 }],
  ["a repetition penalty, greedy", { temperature: 0, repetition_penalty: 1.5 }],
  ["presence and frequency penalties", { temperature: 0, presence_penalty: 1.5, frequency_penalty: 0.7 }],
  ["min_p", { temperature: 1.5, min_p: 0.4 }],
  ["typical_p", { temperature: 1.5, typical_p: 0.3 }],
  ["a bias", { temperature: 0.8, logit_bias: { 40: 8, 50: -100 } }],
])("%s gives the same tokens split and mixed, and other ones than without", async (_name, fields) => {
  const [there, here] = [await complete(split, fields), await complete(mixed, fields)];
  expect(tokensOf(there)).toEqual(tokensOf(here));
  expect(tokensOf(there)).toHaveLength(48);
  const plain = await complete(split, { temperature: fields.temperature });
  expect(tokensOf(there)).not.toEqual(tokensOf(plain));
});

test("a bad word does not appear, neither at a border nor after a space", async () => {
  const free = (await complete(split, { temperature: 0 })).choices[0].text;
  const word = free.match(/[a-z]{3,}/)?.[0] ?? "";
  expect(word).not.toBe("");
  const tokens = tokensOf(await complete(split, { temperature: 0, bad_words: [word] }));
  expect(tokens).toEqual(tokensOf(await complete(mixed, { temperature: 0, bad_words: [word] })));
  expect(tokensOf(await complete(split, { temperature: 0 }))).not.toEqual(tokens);
});

test("stop_token_ids end an answer, min_tokens holds them back", async () => {
  const free = await complete(split, { temperature: 0 });
  const { directory } = await resolveModel("tiny", CACHE_DIR, () => undefined);
  const tokenizer = await loadTokenizer(directory);
  const idsOf = (text: string) =>
    Array.from({ length: tokenizer.vocabSize }, (_, id) => id).filter((id) => tokenizer.tokenText(id) === text);
  const texts = tokensOf(free);
  const at = texts.findIndex((text, i) => i >= 5 && texts.indexOf(text) === i && idsOf(text).length === 1);
  const stop_token_ids = idsOf(texts[at] ?? "");
  const stopped = await complete(split, { temperature: 0, stop_token_ids });
  expect(stopped.choices[0].finish_reason).toBe("stop");
  expect(tokensOf(stopped)).toEqual(tokensOf(free).slice(0, at));
  const held = await complete(split, { temperature: 0, stop_token_ids, min_tokens: 30 });
  expect(tokensOf(held).length).toBeGreaterThanOrEqual(30);
  expect(tokensOf(held).slice(0, at)).toEqual(tokensOf(free).slice(0, at));
});

test("the prompt's log-probabilities come from the worker that computes it, and are those of the answer's own tokens", async () => {
  const free = await complete(mixed, { temperature: 0, max_tokens: 12 });
  for (const cluster of [split, mixed]) {
    const echoed = await complete(cluster, { temperature: 0, max_tokens: 1, echo: true, logprobs: 2 });
    const { tokens, token_logprobs, top_logprobs } = echoed.choices[0].logprobs;
    expect(echoed.choices[0].text.startsWith(base.prompt)).toBe(true);
    expect(tokens).toHaveLength(echoed.usage.prompt_tokens + 1);
    expect(token_logprobs[0]).toBeNull();
    expect(token_logprobs.slice(1).every((value) => value !== null && value <= 0)).toBe(true);
    expect(top_logprobs[0]).toBeNull();
    expect(tokens.at(-1)).toBe(tokensOf(free)[0]);
  }
});

test("include_stop_str_in_output keeps the stop string", async () => {
  const free = (await complete(split, { temperature: 0 })).choices[0].text;
  const stop = free.slice(10, 14);
  const without = (await complete(split, { temperature: 0, stop })).choices[0].text;
  const kept = (await complete(split, { temperature: 0, stop, include_stop_str_in_output: true })).choices[0].text;
  expect(kept).toBe(without + stop);
});

test.each([
  ["min_tokens", { min_tokens: 49 }],
  ["stop_token_ids", { stop_token_ids: [999_999] }],
  ["logit_bias", { logit_bias: { 999999: 1 } }],
  ["prompt_logprobs", { prompt_logprobs: 1, stream: true }],
])("%s out of reach is refused naming it", async (param, fields) => {
  const response = await post(split, { ...base, ...fields }, {}, "/v1/completions");
  expect([response.status, await response.json()]).toMatchObject([400, { error: { param } }]);
});
