import { KvasirError } from "@kvasir/core";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { each, GatewayBench, post } from "./testing/gateway-bench.ts";

let gateway: GatewayBench;

beforeAll(async () => {
  gateway = await GatewayBench.create();
});
afterEach(() => gateway.reset());
afterAll(() => gateway.telemetry.close());

const chat = { model: "tiny", messages: [{ role: "user" as const, content: "hi" }], max_tokens: 40, ignore_eos: true };
const lost = new KvasirError({ reason: "unavailable", message: "the sidecar is lost" });
const after = (batchCount: number, error = lost) => ({ batchCount, error });

test("a stream whose worker is lost goes on elsewhere after the last token sent, and counts each token once", async () => {
  const text = "the mill stands by the river";
  const ids = gateway.tokensOf(text);
  const { openai, upstream } = await gateway.start([
    { batches: each(ids.slice(0, 9)), failAfter: after(9) },
    {
      batches: each(ids.slice(9, 14)),
      failAfter: after(5, new KvasirError({ reason: "unavailable", message: "x", workerId: "p7" })),
    },
    { batches: each(ids.slice(14)) },
  ]);
  const stream = await openai.chat.completions.create({
    ...chat,
    stream: true,
    stream_options: { include_usage: true },
  });
  let got = "";
  let last: unknown;
  for await (const chunk of stream) {
    got += chunk.choices[0]?.delta.content ?? "";
    last = chunk;
  }
  expect(got).toBe(text);
  expect(last).toMatchObject({ usage: { completion_tokens: ids.length }, kvasir: { resumes: 2 } });
  const resumed = upstream.seen.generates.map((request) => request.resumed.map((choice) => choice.tokenIds));
  expect(resumed).toEqual([[], [ids.slice(0, 9)], [ids.slice(0, 14)]]);
  const retries = upstream.seen.places.flatMap(({ kind }) =>
    kind.case === "retry" ? [kind.value.excludedWorkerIds] : [],
  );
  expect(retries).toEqual([["d0"], ["p7"]]);
  await expect.poll(() => upstream.seen.places.filter(({ kind }) => kind.case === "firstToken").length).toBe(3);
  expect(await gateway.telemetry.registry.metrics()).toContain("kvasir_gateway_resumes_total 2");
});

test("a worker that falls silent in mid-stream is left for another", async () => {
  const [first, second] = [gateway.tokensOf("abc"), gateway.tokensOf("def")];
  const scripts = [
    { batches: [first, []], beforeBatch: { index: 1, wait: new Promise(() => undefined) } },
    // However often this process itself seems silent to the gateway.
    { batches: [first, second], goesOn: true },
  ];
  const { openai } = await gateway.start(scripts, { stallTimeoutMs: 300 });
  expect((await openai.chat.completions.create(chat)).choices[0]?.message.content).toBe("abcdef");
});

test("an answer that lacks only the word of its end is not asked for again", async () => {
  const { openai, upstream } = await gateway.start([{ batches: each(Array(40).fill(40)), failAfter: after(40) }]);
  const answer = await openai.chat.completions.create(chat);
  expect(answer.choices[0]?.finish_reason).toBe("length");
  expect(answer.usage?.completion_tokens).toBe(40);
  expect(upstream.seen.generates).toHaveLength(1);
});

test("a stop string is found across a loss", async () => {
  const { openai } = await gateway.start([
    { batches: [gateway.tokensOf("one tw")], failAfter: after(1) },
    { batches: [gateway.tokensOf("o three")] },
  ]);
  const answer = await openai.chat.completions.create({ ...chat, stop: ["two"] });
  expect(answer.choices[0]).toMatchObject({ message: { content: "one " }, finish_reason: "stop" });
});

test("three losses in a row without a token end the stream with a typed error", async () => {
  const { url, upstream } = await gateway.start([
    { batches: each([40, 41]), failAfter: after(2) },
    { batches: [], failAfter: after(0) },
  ]);
  const events = (await (await post(url, { ...chat, stream: true })).text()).trim().split("\n\n");
  expect(JSON.parse(events.at(-1)?.slice(6) ?? "")).toMatchObject({ error: { code: "unavailable" } });
  expect(events).toHaveLength(3);
  expect(upstream.seen.generates).toHaveLength(3);
});

test("worker and router lost together: another router is told which worker failed", async () => {
  const replaced = Promise.withResolvers<void>();
  const { openai, upstream } = await gateway.start([
    { batches: [gateway.tokensOf("ab"), []], beforeBatch: { index: 1, wait: replaced.promise }, failAfter: after(2) },
    { batches: [gateway.tokensOf("cd")] },
  ]);
  const answer = openai.chat.completions.create(chat);
  await expect.poll(() => upstream.seen.sent).toBe(1);
  await upstream.replaceRouter();
  replaced.resolve();
  expect((await answer).choices[0]?.message.content).toBe("abcd");
  const starts = upstream.seen.places.flatMap(({ kind }) =>
    kind.case === "start" ? [kind.value.excludedWorkerIds] : [],
  );
  expect(starts).toEqual([[], ["d0"]]);
});

test("without a router a loss is told within the time for another placement", async () => {
  const gone = Promise.withResolvers<void>();
  const scripts = [{ batches: [[40], []], beforeBatch: { index: 1, wait: gone.promise }, failAfter: after(2) }];
  const { url, upstream } = await gateway.start(scripts, { resumeTimeoutMs: 1_500 });
  const answer = post(url, { ...chat, stream: true });
  await expect.poll(() => upstream.seen.sent).toBe(1);
  await upstream.loseRouter();
  gone.resolve();
  const lostAt = performance.now();
  const events = (await (await answer).text()).trim().split("\n\n");
  expect(JSON.parse(events.at(-1)?.slice(6) ?? "")).toMatchObject({ error: { code: "unavailable" } });
  // Another router is waited for, and not until the request's own time is over, which is a minute.
  expect(performance.now() - lostAt).toBeGreaterThan(1_400);
}, 40_000);

test("what a prefill worker computed for a decode worker that fell silent is asked for by the next one, once", async () => {
  const scripts = [
    { batches: [gateway.tokensOf("a"), []], beforeBatch: { index: 1, wait: new Promise(() => undefined) } },
    { batches: [], failAfter: after(0) },
    { batches: [gateway.tokensOf("bc")] },
  ];
  // Longer than this process stands still, or the first attempt would be left before its token came.
  const { openai, upstream } = await gateway.start(scripts, { stallTimeoutMs: 2_500 });
  expect((await openai.chat.completions.create(chat)).choices[0]?.message.content).toBe("abc");
  const [first, second, third] = upstream.seen.generates;
  expect(second?.transferId).toEqual(first?.transferId);
  expect(third?.transferId).not.toEqual(first?.transferId);
  expect([first, second, third].map((request) => request?.adoptsTransfer)).toEqual([false, true, false]);
  const kept = upstream.seen.places.flatMap(({ kind }) =>
    kind.case === "retry" ? [kind.value.keptPrefillWorkerId] : [],
  );
  expect(kept).toEqual(["p0", ""]);
});

test("a new request outlives the death of the router that it waits at", async () => {
  const { openai, upstream } = await gateway.start([{ batches: [gateway.tokensOf("ok")] }]);
  await upstream.loseRouter();
  const answer = openai.chat.completions.create(chat);
  setTimeout(() => void upstream.replaceRouter(), 300);
  expect((await answer).choices[0]?.message.content).toBe("ok");
});
