import { request as httpRequest } from "node:http";
import { KvasirError } from "@kvasir/core";
import { KvAccuracy, ServiceClass } from "@kvasir/proto";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { Script } from "./testing/fake-upstream.ts";
import { each, GatewayBench, post } from "./testing/gateway-bench.ts";

let gateway: GatewayBench;

beforeAll(async () => {
  gateway = await GatewayBench.create();
});
afterEach(() => gateway.reset());
afterAll(() => gateway.telemetry.close());

const start = (...scripts: Script[]) => gateway.start(scripts);
const tokensOf = (text: string) => gateway.tokensOf(text);
const chat = { model: "tiny", messages: [{ role: "user" as const, content: "hi" }] };

test("the openai client streams a chat: role once, text, reason, usage, and Kvasir's own facts", async () => {
  const { openai, upstream } = await start({ batches: each(tokensOf("grüß 🌊")), finish: "stop" });
  const stream = await openai.chat.completions.create({
    ...chat,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  const roles: unknown[] = [];
  const finishes: unknown[] = [];
  let usage: unknown;
  let extension: unknown;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    if (chunk.choices[0]?.delta.role) roles.push(chunk.choices[0].delta.role);
    if (chunk.choices[0]?.finish_reason) finishes.push(chunk.choices[0].finish_reason);
    if (chunk.usage) usage = chunk.usage;
    if ("kvasir" in chunk) extension = chunk.kvasir;
  }
  expect(text).toBe("grüß 🌊");
  expect(roles).toEqual(["assistant"]);
  expect(finishes).toEqual(["stop"]);
  const promptTokens = upstream.seen.generates[0]?.promptTokenIds.length;
  expect(usage).toMatchObject({ prompt_tokens: promptTokens, completion_tokens: 11 });
  expect(extension).toMatchObject({ mode: "split", prefill_worker: "p0", decode_worker: "d0", kv_bytes_moved: 77 });
  expect(extension).toMatchObject({ approximate_prompt_tokens: 9 });
  await expect.poll(() => upstream.seen.placeEnded).toBe(1);
  expect(upstream.seen.places.map((place) => place.kind.case)).toEqual(["start", "firstToken", "finished"]);
  const last = upstream.seen.places.at(-1)?.kind;
  expect(last?.value).toMatchObject({ outputTokenCount: 11, tbtMs: expect.any(Number) });
});

test("without streaming the body is whole, with log-probabilities when asked", async () => {
  const { openai } = await start({ batches: [tokensOf("ab")], finish: "length" });
  const answer = await openai.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 1, max_tokens: 2 });
  expect(answer.choices[0]).toMatchObject({ finish_reason: "length", message: { role: "assistant", content: "ab" } });
  expect(answer.choices[0]?.logprobs?.content?.map((entry) => [entry.token, entry.logprob])).toEqual([
    ["a", -0.5],
    ["b", -0.5],
  ]);
});

test("completions take text or tokens, and show log-probabilities in their own way", async () => {
  const { openai, upstream } = await start({ batches: [tokensOf("yes")] });
  const answer = await openai.completions.create({ model: "tiny", prompt: [5, 6, 7] as never, logprobs: 1 });
  expect(upstream.seen.generates[0]?.promptTokenIds).toEqual([5, 6, 7]);
  expect(upstream.seen.generates[0]?.sampling?.maxTokens).toBe(16);
  expect(answer.choices[0]).toMatchObject({
    text: "yes",
    logprobs: { tokens: ["y", "e", "s"], text_offset: [0, 1, 2] },
  });
});

test("a stop string across tokens ends the text before it and the generation at once", async () => {
  const { openai, upstream } = await start({ batches: each(tokensOf("one STOP two three four")), gapMs: 5 });
  const answer = await openai.chat.completions.create({ ...chat, stop: [" STOP"] });
  expect(answer.choices[0]).toMatchObject({ finish_reason: "stop", message: { content: "one" } });
  await expect.poll(() => upstream.seen.cancelled).toBe(1);
  expect(upstream.seen.sent).toBeLessThan(14);
});

test("what might have begun a stop string is shown when it did not", async () => {
  const { openai } = await start({ batches: each(tokensOf("a ST")) });
  expect((await openai.chat.completions.create({ ...chat, stop: " STOP" })).choices[0]?.message.content).toBe("a ST");
});

test("a client that goes away cancels the generation and the placement", async () => {
  const { url, upstream } = await start({ batches: each(Array(200).fill(40)), gapMs: 5 });
  const call = httpRequest(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
  });
  call.on("error", () => undefined);
  call.on("response", (response) => response.once("data", () => call.destroy()));
  call.end(JSON.stringify({ ...chat, stream: true }));
  await expect.poll(() => upstream.seen.cancelled).toBe(1);
  await expect.poll(() => upstream.seen.placeEnded).toBe(1);
});

const overloaded = new KvasirError({ reason: "overloaded", message: "12 wait", retryAfterMs: 1_500 });

test("a failure before the first token is placed again, without the workers that failed", async () => {
  const { openai, upstream } = await start(
    { batches: [], failAfter: { batchCount: 0, error: overloaded } },
    { batches: [tokensOf("ok")] },
  );
  expect((await openai.chat.completions.create(chat)).choices[0]?.message.content).toBe("ok");
  const retry = upstream.seen.places.find((place) => place.kind.case === "retry");
  expect(retry?.kind.value).toMatchObject({ excludedWorkerIds: ["d0"] });
});

test("each attempt is a span, and the placement after a failure links to the one that failed", async () => {
  const { url } = await start(
    { batches: [], failAfter: { batchCount: 0, error: overloaded } },
    { batches: [tokensOf("ok")] },
  );
  const response = await post(url, chat);
  await response.text();
  const traceId = response.headers.get("x-kvasir-trace-id") ?? "";
  await expect.poll(() => gateway.telemetry.spans(traceId).length).toBe(4);
  const [failed, replace, second, request] = gateway.telemetry.spans(traceId);
  expect(request).toMatchObject({ name: "gateway.request", parentSpanId: "" });
  const parentSpanId = request?.spanId;
  expect(failed).toMatchObject({ name: "gateway.generate", parentSpanId, error: "12 wait" });
  expect(replace).toMatchObject({ name: "replace", parentSpanId, links: [{ traceId, spanId: failed?.spanId }] });
  expect(second).toMatchObject({ name: "gateway.generate", parentSpanId, attributes: { "kvasir.attempt": 2 } });
});

test("three placements in vain are told with status and Retry-After", async () => {
  const { url, upstream } = await start({ batches: [], failAfter: { batchCount: 0, error: overloaded } });
  const response = await post(url, chat);
  expect([response.status, response.headers.get("retry-after")]).toEqual([429, "2"]);
  expect(await response.json()).toMatchObject({ error: { type: "overloaded_error", code: "overloaded" } });
  expect(upstream.seen.generates).toHaveLength(3);
});

test("a failure after the first token that no other worker can mend is the stream's last event", async () => {
  const broken = new KvasirError({ reason: "internal", message: "a defect" });
  const { url } = await start({ batches: each([40, 41]), failAfter: { batchCount: 2, error: broken } });
  const events = (await (await post(url, { ...chat, stream: true })).text()).trim().split("\n\n");
  expect(JSON.parse(events.at(-1)?.slice(6) ?? "")).toMatchObject({ error: { code: "internal" } });
  expect(events).toHaveLength(3);
});

test("a silent worker ends with deadline_exceeded", async () => {
  const silent = { batches: each([40]), before: () => new Promise(() => undefined) };
  const { url } = await gateway.start([silent], { stallTimeoutMs: 300 });
  const response = await post(url, chat);
  expect(response.status).toBe(504);
});

test("a client that reads slowly holds back the worker, and gets everything", async () => {
  // About 40 MB: several times what the sockets' buffers of both ends hold on any machine.
  const batches = Array.from({ length: 2_000 }, () => Array.from({ length: 200 }, (_, i) => 30 + (i % 60)));
  const { url, upstream } = await gateway.start([{ batches }], { requestTimeoutMs: 120_000 });
  let sentWhilePaused = batches.length;
  const whole = await new Promise<string>((resolve, reject) => {
    const call = httpRequest(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
    });
    call.on("response", (response) => {
      response.pause();
      standsStill(() => upstream.seen.sent)
        .then((sent) => {
          sentWhilePaused = sent;
          let text = "";
          response.setEncoding("utf8").on("data", (chunk: string) => {
            text += chunk;
          });
          response.on("end", () => resolve(text));
          response.resume();
        })
        .catch(reject);
    });
    call.on("error", reject);
    call.end(JSON.stringify({ ...chat, stream: true, logprobs: true, top_logprobs: 1 }));
  });
  expect(sentWhilePaused).toBeLessThan(batches.length);
  expect(whole.endsWith("data: [DONE]\n\n")).toBe(true);
  expect(whole.match(/^data: /gm)).toHaveLength(batches.length + 2);
}, 120_000);

/** A count once it has not changed for a quarter of a second. */
async function standsStill(count: () => number): Promise<number> {
  for (let last = -1; last !== count(); ) {
    last = count();
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  return count();
}

test.each([
  ["an unknown model", { ...chat, model: "gpt-4" }, 400, "model"],
  [
    "a prompt beyond the context",
    { ...chat, messages: [{ role: "user", content: "word ".repeat(9_000) }] },
    400,
    "messages",
  ],
  ["more tokens than the context holds", { ...chat, max_tokens: 5_000 }, 400, "max_tokens"],
  ["a foreign field", { ...chat, tools: [] }, 400, "tools"],
])("%s is refused naming the field", async (_name, body, status, param) => {
  const { url, upstream } = await start({ batches: [] });
  const response = await post(url, body);
  expect(response.status).toBe(status);
  expect(await response.json()).toMatchObject({ error: { type: "invalid_request_error", param } });
  expect(upstream.seen.places).toHaveLength(0);
});

test("bodies that are too large, of another type, or at another place are told in OpenAI's shape", async () => {
  const { url } = await start({ batches: [] });
  const large = await post(url, { ...chat, user: "x".repeat(200_000) });
  expect([large.status, await large.json()]).toMatchObject([400, { error: { param: "body", code: "body_too_large" } }]);
  const text = await fetch(`${url}/v1/chat/completions`, { method: "POST", body: "hi" });
  expect([text.status, await text.json()]).toMatchObject([415, { error: { param: "content-type" } }]);
  const method = await fetch(`${url}/v1/chat/completions`);
  expect([method.status, await method.json()]).toMatchObject([405, { error: { code: "method_not_allowed" } }]);
  expect((await fetch(`${url}/v2`)).status).toBe(404);
});

test("request ids are kept, models listed, probes answered", async () => {
  const { url, openai } = await start({ batches: [[40]] });
  const response = await post(url, chat, { "x-request-id": "mine-1" });
  expect(response.headers.get("x-request-id")).toBe("mine-1");
  expect(response.headers.get("x-kvasir-trace-id")).toMatch(/^[0-9a-f]{32}$/);
  expect((await openai.models.list()).data.map((entry) => entry.id)).toEqual(["tiny"]);
  expect((await fetch(`${url}/ready`)).status).toBe(200);
  expect((await fetch(`${url}/live`)).status).toBe(200);
  expect(await (await fetch(`${url}/metrics`)).text()).toContain(
    'kvasir_gateway_requests_total{endpoint="chat",status="200"} 1',
  );
});

test("targets in headers and body reach the router, less the time that passed here", async () => {
  const { url, upstream } = await start({ batches: [tokensOf("ok")] });
  const headers = { "content-type": "application/json", "x-slo-ttft-ms": "60000", "x-llm-d-slo-tpot-ms": "45" };
  const body = JSON.stringify({ ...chat, kvasir: { slo: { tpot_ms: 30, on_miss: "best_effort" } } });
  expect((await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body })).status).toBe(200);
  const [place] = upstream.seen.places;
  if (place?.kind.case !== "start") throw new Error("no placement was asked for");
  expect(place.kind.value).toMatchObject({ tbtTargetMs: 30, mayBeLate: true });
  expect(place.kind.value.ttftTargetMs).toBeLessThan(60_000);
  expect(place.kind.value.ttftTargetMs).toBeGreaterThan(30_000);
});

test("how exact moved KV has to be, and when it is wanted, reaches the worker and the router; a word that is none is refused", async () => {
  const { url, upstream } = await start({ batches: [tokensOf("ok")] });
  const ask = (kvasir: object) => {
    const headers = { "content-type": "application/json" };
    return fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body: JSON.stringify({ ...chat, kvasir }) });
  };
  expect((await ask({ kv_accuracy: "near", slo: { tpot_ms: 30 } })).status).toBe(200);
  expect((await ask({})).status).toBe(200);
  const asked = upstream.seen.generates.map(({ kvAccuracy, tbtTargetMs }) => [kvAccuracy, tbtTargetMs]);
  expect(asked).toEqual([
    [KvAccuracy.NEAR, 30],
    [KvAccuracy.EXACT, 0],
  ]);
  const placed = upstream.seen.places.flatMap(({ kind }) => (kind.case === "start" ? [kind.value.kvAccuracy] : []));
  expect(placed).toEqual([KvAccuracy.NEAR, KvAccuracy.EXACT]);
  expect((await ask({ kv_accuracy: "good" })).status).toBe(400);
});

test("a target that is no time is refused with its name", async () => {
  const { url } = await start({ batches: [] });
  const headers = { "content-type": "application/json", "x-slo-ttft-ms": "fast" };
  const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body: JSON.stringify(chat) });
  expect(response.status).toBe(400);
  expect(await response.json()).toMatchObject({ error: { param: "x-slo-ttft-ms", code: "invalid_value" } });
});

test("a refusal for want of room in time is a 429 that programs can read, with when to come back to the millisecond", async () => {
  const message = "no placement meets the targets: the best would have TTFT 900 ms of 300";
  const refuse = new KvasirError({ reason: "overloaded", code: "slo_unattainable", message, retryAfterMs: 1_340 });
  const { url, openai } = await gateway.start([{ batches: [] }], { refuse });
  const response = await post(url, chat);
  expect(response.status).toBe(429);
  expect(await response.json()).toEqual({
    error: { message, type: "overloaded_error", param: null, code: "slo_unattainable" },
  });
  expect([response.headers.get("retry-after"), response.headers.get("retry-after-ms")]).toEqual(["2", "1340"]);
  const error = await openai.chat.completions.create(chat, { maxRetries: 0 }).catch((thrown: unknown) => thrown);
  expect(error).toMatchObject({ status: 429, code: "slo_unattainable", name: "Error" });
});

test("the tier that a request is served as is told to who asked, and to whom it is not what was asked for", async () => {
  const served = async (placement: object, fields: object, stream = false) => {
    const { openai, upstream } = await gateway.start([{ batches: [tokensOf("ok")] }], { placement });
    const body = { ...chat, ...fields };
    const asked = () => {
      const [place] = upstream.seen.places;
      return place?.kind.case === "start" ? place.kind.value : undefined;
    };
    if (!stream) return { tier: (await openai.chat.completions.create(body)).service_tier, asked: asked() };
    const tiers = new Set<unknown>();
    for await (const chunk of await openai.chat.completions.create({ ...body, stream: true }))
      tiers.add(chunk.service_tier);
    return { tier: [...tiers], asked: asked() };
  };
  const flex = await served({ serviceClass: ServiceClass.FLEX }, { service_tier: "flex", priority: -3 }, true);
  expect(flex.tier).toEqual(["flex"]);
  expect(flex.asked).toMatchObject({ serviceClass: ServiceClass.FLEX, priority: -3, tenantWeight: 1 });
  expect((await served({ serviceClass: ServiceClass.DEFAULT }, { service_tier: "auto" })).tier).toBe("default");
  expect((await served({ serviceClass: ServiceClass.DEFAULT }, {})).tier).toBeUndefined();
  expect((await served({ serviceClass: ServiceClass.FLEX, isBestEffort: true }, {})).tier).toBe("flex");
});

test("a session in body or header, and the prompt's cache key, reach the router as keys that say nothing else", async () => {
  const { url, upstream } = await start({ batches: [tokensOf("ok")] });
  await (await post(url, { ...chat, session_id: "s1", prompt_cache_key: "support" })).text();
  await (await post(url, { ...chat, prompt_cache_key: "support" }, { "x-session-id": "s1" })).text();
  const [one, two] = upstream.seen.places.flatMap(({ kind }) => (kind.case === "start" ? [kind.value] : []));
  expect(one?.sessionKey).toHaveLength(16);
  expect(one?.sessionKey).toEqual(two?.sessionKey);
  expect(one?.promptClass).toEqual(two?.promptClass);
  expect(one?.tenant).toHaveLength(16);
});
