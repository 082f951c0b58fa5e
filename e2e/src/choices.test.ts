import type { LocalCluster } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { expectNothingLeft, openStream, post, processOf, startTiny } from "./support.ts";

let split: LocalCluster;
let mixed: LocalCluster;
beforeAll(async () => {
  [split, mixed] = await Promise.all([startTiny(), startTiny({ prefill: 0, decode: 0, mixed: 1 })]);
}, 60_000);
afterAll(() => Promise.all([split?.stop(), mixed?.stop()]));

const base = { model: "tiny", prompt: "the old mill by the sea ".repeat(9), temperature: 1, seed: 40, max_tokens: 24 };

interface Completion {
  readonly choices: readonly { readonly index: number; readonly text: string; readonly finish_reason: string }[];
  readonly usage: { readonly prompt_tokens: number; readonly completion_tokens: number };
  readonly kvasir: { readonly kv_bytes_moved: number };
}

async function complete(cluster: LocalCluster, fields: object): Promise<Completion> {
  const response = await post(cluster, { ...base, ...fields }, {}, "/v1/completions");
  expect(response.status, await response.clone().text()).toBe(200);
  return (await response.json()) as Completion;
}

test.each([
  ["of any length", {}],
  ["of one token", { max_tokens: 1 }],
  ["to a prompt that fills its blocks but for one token", { prompt: Array.from({ length: 65 }, (_, i) => i + 3) }],
  ["to a prompt that fills its blocks", { prompt: Array.from({ length: 64 }, (_, i) => i + 3) }],
  ["to a prompt of one token", { prompt: [9] }],
])("five answers %s are those of five requests, whose seeds count on", async (_name, fields) => {
  const alone = await Promise.all([0, 1, 2, 3, 4].map((i) => complete(mixed, { ...fields, seed: 40 + i })));
  const expected = alone.map((answer, index) => ({
    index,
    text: answer.choices[0]?.text,
    finish_reason: answer.choices[0]?.finish_reason,
  }));
  for (const cluster of [mixed, split]) {
    const together = await complete(cluster, { ...fields, n: 5 });
    expect(together.choices.map(({ index, text, finish_reason }) => ({ index, text, finish_reason }))).toEqual(
      expected,
    );
    expect(together.usage.prompt_tokens).toBe(alone[0]?.usage.prompt_tokens);
    expect(together.usage.completion_tokens).toBe(alone.reduce((sum, { usage }) => sum + usage.completion_tokens, 0));
  }
  // The only token of one answer comes from the prefill worker: without further answers nobody needs the KV.
  const one = await complete(split, { ...fields, max_tokens: 24 });
  // Once, raw or lossless, not once for each.
  const five = await complete(split, { ...fields, n: 5 });
  expect(five.kvasir.kv_bytes_moved).toBeLessThan(2 * one.kvasir.kv_bytes_moved);
  await expectNothingLeft(split);
  await expectNothingLeft(mixed);
});

test("streamed answers come with their index, each with its end, and a stop string ends its own only", async () => {
  const body = {
    model: "tiny",
    messages: [{ role: "user", content: "hi" }],
    temperature: 1,
    seed: 3,
    max_tokens: 30,
    n: 3,
  };
  const whole = (await (await post(split, body)).json()) as { choices: { message: { content: string } }[] };
  const contents = whole.choices.map((choice) => choice.message.content);
  const stop = contents[1]?.slice(8, 12) ?? "";
  const stream = await openStream(split, { ...body, stop });
  const texts = ["", "", ""];
  const ends = ["", "", ""];
  for (let event = await stream.next(); event !== undefined && event !== "done"; event = await stream.next()) {
    const [choice] = event.choices as { index: number; delta: { content?: string }; finish_reason: string | null }[];
    if (choice === undefined) continue;
    expect(ends[choice.index], "nothing comes after an answer's end").toBe("");
    texts[choice.index] += choice.delta.content ?? "";
    ends[choice.index] = choice.finish_reason ?? "";
  }
  expect(texts).toEqual(contents.map((text) => (text.includes(stop) ? text.slice(0, text.indexOf(stop)) : text)));
  expect(ends[1]).toBe("stop");
  expect(ends.every((end) => end !== "")).toBe(true);
  await expectNothingLeft(split);
});

test("a client that goes away, and a worker that dies, leave nothing of any answer", async () => {
  const long = {
    model: "tiny",
    messages: [{ role: "user", content: "hi" }],
    n: 6,
    max_tokens: 1_000,
    ignore_eos: true,
  };
  for (const cluster of [mixed, split]) {
    const abort = new AbortController();
    const stream = await openStream(cluster, long, abort.signal);
    for (let i = 0; i < 10; i++) await stream.next();
    abort.abort();
    await expectNothingLeft(cluster);
  }
  const stream = await openStream(split, long);
  for (let i = 0; i < 10; i++) await stream.next();
  const worker = processOf(split, "decode");
  await worker.kill("SIGKILL");
  await worker.restart();
  await expectNothingLeft(split);
});

test("more answers than the pool could hold are refused by name", async () => {
  const response = await post(split, { ...base, n: 129 }, {}, "/v1/completions");
  expect([response.status, await response.json()]).toMatchObject([400, { error: { param: "n" } }]);
});
