import { request as httpRequest } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { KvasirError } from "@kvasir/core";
import { ensureTinyModel } from "@kvasir/models";
import { startTelemetry } from "@kvasir/telemetry";
import { loadModelFacts, loadTokenizer } from "@kvasir/tokenizer";
import OpenAI from "openai";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { createMetrics } from "./metrics.ts";
import type { ServedModel } from "./prepare.ts";
import { RunningRequests } from "./running-requests.ts";
import { buildServer } from "./server.ts";
import { type Script, startFakeUpstream } from "./testing/fake-upstream.ts";
import { DecodeClients } from "./upstream/decode-clients.ts";
import { RouterLink } from "./upstream/router-link.ts";

const telemetry = startTelemetry({ service: "gateway", instanceId: "test", logLevel: "silent" });
let model: ServedModel;
let closers: (() => Promise<unknown>)[] = [];

beforeAll(async () => {
  const directory = await ensureTinyModel(join(tmpdir(), "kvasir-gateway-test"));
  model = {
    name: "tiny",
    tokenizer: await loadTokenizer(directory),
    facts: await loadModelFacts(directory),
    createdAtUnixS: 1,
  };
});

afterEach(async () => {
  for (const close of closers.reverse()) await close();
  closers = [];
});

afterAll(() => telemetry.close());

async function start(...scripts: Script[]) {
  const upstream = await startFakeUpstream(scripts);
  const router = new RouterLink(upstream.state as never);
  const decode = new DecodeClients();
  telemetry.registry.clear();
  const running = new RunningRequests();
  const server = buildServer({
    model,
    upstream: { router, decode },
    telemetry,
    metrics: createMetrics(telemetry.registry),
    running,
    tenantScope: new Uint8Array(16),
    requestTimeoutMs: 5_000,
    stallTimeoutMs: 300,
    bodyLimitBytes: 100_000,
    isReady: () => ({ ready: router.cluster?.ready ?? false }),
    refresh: () => router.refresh(),
  });
  const url = await server.listen({ host: "127.0.0.1", port: 0 });
  closers.push(
    () => upstream.close(),
    async () => {
      const closed = server.close();
      server.server.closeAllConnections();
      await closed;
      router.close();
      decode.close();
    },
  );
  return { url, upstream, running, openai: new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 }) };
}

/** The tiny vocabulary's bytes follow its three special tokens: a character is one token. */
async function tokensOf(text: string): Promise<number[]> {
  const ids: number[] = [];
  for (const byte of new TextEncoder().encode(text)) {
    const id = Array.from({ length: 256 }, (_, i) => i + 3).find((id) => model.tokenizer.tokenBytes(id)[0] === byte);
    if (id !== undefined) ids.push(id);
  }
  return ids;
}

const each = (ids: readonly number[]) => ids.map((id) => [id]);
const chat = { model: "tiny", messages: [{ role: "user" as const, content: "hi" }] };

test("the openai client streams a chat: role once, text, reason, usage, and Kvasir's own facts", async () => {
  const { openai, upstream } = await start({ batches: each(await tokensOf("grüß 🌊")), finish: "stop" });
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
  await expect.poll(() => upstream.seen.placeEnded).toBe(1);
  expect(upstream.seen.places.map((place) => place.kind.case)).toEqual(["start", "firstToken"]);
});

test("without streaming the body is whole, with log-probabilities when asked", async () => {
  const { openai } = await start({ batches: [await tokensOf("ab")], finish: "length" });
  const answer = await openai.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 1, max_tokens: 2 });
  expect(answer.choices[0]).toMatchObject({ finish_reason: "length", message: { role: "assistant", content: "ab" } });
  expect(answer.choices[0]?.logprobs?.content?.map((entry) => [entry.token, entry.logprob])).toEqual([
    ["a", -0.5],
    ["b", -0.5],
  ]);
});

test("completions take text or tokens, and show log-probabilities in their own way", async () => {
  const { openai, upstream } = await start({ batches: [await tokensOf("yes")] });
  const answer = await openai.completions.create({ model: "tiny", prompt: [5, 6, 7] as never, logprobs: 1 });
  expect(upstream.seen.generates[0]?.promptTokenIds).toEqual([5, 6, 7]);
  expect(upstream.seen.generates[0]?.sampling?.maxTokens).toBe(16);
  expect(answer.choices[0]).toMatchObject({
    text: "yes",
    logprobs: { tokens: ["y", "e", "s"], text_offset: [0, 1, 2] },
  });
});

test("a stop string across tokens ends the text before it and the generation at once", async () => {
  const { openai, upstream } = await start({ batches: each(await tokensOf("one STOP two three four")), gapMs: 5 });
  const answer = await openai.chat.completions.create({ ...chat, stop: [" STOP"] });
  expect(answer.choices[0]).toMatchObject({ finish_reason: "stop", message: { content: "one" } });
  await expect.poll(() => upstream.seen.cancelled).toBe(1);
  expect(upstream.seen.sent).toBeLessThan(14);
});

test("what might have begun a stop string is shown when it did not", async () => {
  const { openai } = await start({ batches: each(await tokensOf("a ST")) });
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
    { batches: [await tokensOf("ok")] },
  );
  expect((await openai.chat.completions.create(chat)).choices[0]?.message.content).toBe("ok");
  const retry = upstream.seen.places.find((place) => place.kind.case === "retry");
  expect(retry?.kind.value).toMatchObject({ excludedWorkerIds: ["d0", "p0"] });
});

test("three placements in vain are told with status and Retry-After", async () => {
  const { url, upstream } = await start({ batches: [], failAfter: { batchCount: 0, error: overloaded } });
  const response = await post(url, chat);
  expect([response.status, response.headers.get("retry-after")]).toEqual([429, "2"]);
  expect(await response.json()).toMatchObject({ error: { type: "overloaded_error", code: "overloaded" } });
  expect(upstream.seen.generates).toHaveLength(3);
});

test("a failure after the first token is the stream's last event", async () => {
  const lost = new KvasirError({ reason: "unavailable", message: "the sidecar is lost" });
  const { url } = await start({ batches: each([40, 41]), failAfter: { batchCount: 2, error: lost } });
  const events = (await (await post(url, { ...chat, stream: true })).text()).trim().split("\n\n");
  expect(JSON.parse(events.at(-1)?.slice(6) ?? "")).toMatchObject({ error: { code: "unavailable" } });
  expect(events).toHaveLength(3);
});

test("a silent worker ends with deadline_exceeded", async () => {
  const { url } = await start({ batches: each([40]), gapMs: 5_000 });
  const response = await post(url, chat);
  expect(response.status).toBe(504);
});

test("a client that reads slowly holds back the worker, and gets everything", async () => {
  const batches = Array.from({ length: 2_000 }, () => Array.from({ length: 20 }, (_, i) => 30 + i));
  const { url, upstream } = await start({ batches });
  let sentWhilePaused = batches.length;
  const whole = await new Promise<string>((resolve, reject) => {
    const call = httpRequest(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
    });
    call.on("response", (response) => {
      response.pause();
      setTimeout(() => {
        sentWhilePaused = upstream.seen.sent;
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => {
          text += chunk;
        });
        response.on("end", () => resolve(text));
        response.resume();
      }, 250);
    });
    call.on("error", reject);
    call.end(JSON.stringify({ ...chat, stream: true, logprobs: true, top_logprobs: 1 }));
  });
  expect(sentWhilePaused).toBeLessThan(batches.length);
  expect(whole.endsWith("data: [DONE]\n\n")).toBe(true);
  expect(whole.match(/^data: /gm)).toHaveLength(batches.length + 2);
});

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

function post(url: string, body: object, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
}
