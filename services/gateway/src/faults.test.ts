import { request as httpRequest } from "node:http";
import { KvasirError } from "@kvasir/core";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { each, GatewayBench, post } from "./testing/gateway-bench.ts";

let gateway: GatewayBench;

beforeAll(async () => {
  gateway = await GatewayBench.create();
});
afterEach(() => gateway.reset());
afterAll(() => gateway.telemetry.close());

const chat = { model: "tiny", messages: [{ role: "user" as const, content: "hi" }] };
const overloaded = new KvasirError({ reason: "overloaded", message: "12 wait", retryAfterMs: 1_500 });

/** Sends a request and goes away when `leave` resolves. */
function sendAndLeave(url: string, body: object, leave: Promise<unknown>): void {
  const headers = { "content-type": "application/json" };
  const call = httpRequest(`${url}/v1/chat/completions`, { method: "POST", headers });
  call.on("error", () => undefined);
  call.end(JSON.stringify(body));
  void leave.then(() => call.destroy());
}

test("a router lost between a placement and its failure is replaced by another that is listed", async () => {
  const replaced = Promise.withResolvers<void>();
  const { openai, upstream, router } = await gateway.start([
    { batches: [], before: () => replaced.promise, failAfter: { batchCount: 0, error: overloaded } },
    { batches: [gateway.tokensOf("ok")] },
  ]);
  const answer = openai.chat.completions.create(chat);
  await expect.poll(() => upstream.seen.generates.length).toBe(1);
  await upstream.replaceRouter();
  await expect.poll(async () => (await router.refresh())?.ready).toBe(true);
  replaced.resolve();
  expect((await answer).choices[0]?.message.content).toBe("ok");
  expect(upstream.seen.places.filter((place) => place.kind.case === "start")).toHaveLength(2);
});

test("a router lost in mid-stream does not disturb the stream", async () => {
  const lost = Promise.withResolvers<void>();
  const { url, upstream } = await gateway.start([
    { batches: each(Array(20).fill(40)), gapMs: 5, before: () => lost.promise },
  ]);
  const answer = post(url, { ...chat, stream: true });
  await expect.poll(() => upstream.seen.generates.length).toBe(1);
  await upstream.loseRouter();
  lost.resolve();
  const events = (await (await answer).text()).trim().split("\n\n");
  expect(events.at(-1)).toBe("data: [DONE]");
  expect(events).toHaveLength(22);
});

test("no router at all is unavailable, with a time to come back", async () => {
  const { url, upstream } = await gateway.start([{ batches: [] }], { resumeTimeoutMs: 500 });
  await upstream.loseRouter();
  const response = await post(url, chat);
  expect([response.status, response.headers.get("retry-after")]).toEqual([503, "1"]);
  expect(await response.json()).toMatchObject({ error: { code: "unavailable" } });
  expect((await fetch(`${url}/ready`)).status).toBe(503);
});

test("a client that leaves while it waits for a placement leaves the queue", async () => {
  const { url, upstream, running } = await gateway.start([{ batches: [] }], { queueForever: true });
  const queued = expect.poll(() => upstream.seen.places.length).toBe(1);
  sendAndLeave(url, chat, queued);
  await queued;
  await expect.poll(() => upstream.seen.placeEnded).toBe(1);
  await expect.poll(() => running.count).toBe(0);
  expect(upstream.seen.generates).toHaveLength(0);
  expect(await gateway.telemetry.registry.metrics()).toContain("kvasir_gateway_aborted_total 1");
});

test("a client that leaves before a whole answer cancels the generation", async () => {
  const { url, upstream, running } = await gateway.start([{ batches: each(Array(200).fill(40)), gapMs: 5 }]);
  const generating = expect.poll(() => upstream.seen.sent).toBeGreaterThan(2);
  sendAndLeave(url, chat, generating);
  await generating;
  await expect.poll(() => upstream.seen.cancelled).toBe(1);
  await expect.poll(() => upstream.seen.placeEnded).toBe(1);
  await expect.poll(() => running.count).toBe(0);
  expect(await gateway.telemetry.registry.metrics()).toContain('status="499"} 1');
});

test("the request's time is told to the worker, and its end to the client", async () => {
  const endless = { batches: [[40], []], beforeBatch: { index: 1, wait: new Promise(() => undefined) } };
  const { url, upstream } = await gateway.start([endless], { requestTimeoutMs: 2_500 });
  const response = await post(url, chat);
  expect(response.status).toBe(504);
  expect(await response.json()).toMatchObject({
    error: { type: "timeout_error", code: "deadline_exceeded", message: "the request took longer than 2500 ms" },
  });
  await expect.poll(() => upstream.seen.cancelled).toBe(1);
  expect(upstream.seen.generateDeadlinesMs[0]).toBeGreaterThan(0);
  // A second more than the gateway's own, which tells the client.
  expect(upstream.seen.generateDeadlinesMs[0]).toBeLessThanOrEqual(3_500);
});

test("a worker that gives a request up is replaced like one that is lost", async () => {
  const leaving = new KvasirError({ reason: "cancelled", message: "the worker leaves" });
  const { openai } = await gateway.start([
    { batches: [], failAfter: { batchCount: 0, error: leaving } },
    { batches: [gateway.tokensOf("ok")] },
  ]);
  expect((await openai.chat.completions.create(chat)).choices[0]?.message.content).toBe("ok");
});

test("what is wrong with a request is not tried elsewhere, and names the worker's field", async () => {
  const wrong = new KvasirError({ reason: "invalid_request", field: "max_tokens", message: "max_tokens is too large" });
  const { url, upstream } = await gateway.start([{ batches: [], failAfter: { batchCount: 0, error: wrong } }]);
  const response = await post(url, chat);
  expect([response.status, await response.json()]).toMatchObject([400, { error: { param: "max_tokens" } }]);
  expect(upstream.seen.generates).toHaveLength(1);
});

test("a gateway that stops lets streams end in their grace", async () => {
  const { url, upstream, running, server } = await gateway.start([{ batches: each(Array(30).fill(40)), gapMs: 10 }]);
  const answer = post(url, { ...chat, stream: true });
  await expect.poll(() => upstream.seen.sent).toBeGreaterThan(1);
  const closed = server.close();
  await running.drain(30_000, 500);
  expect((await (await answer).text()).endsWith("data: [DONE]\n\n")).toBe(true);
  await expect(post(url, chat)).rejects.toThrow();
  server.server.closeAllConnections();
  await closed;
});

test("streams that outlive the grace are told that the gateway is stopping", async () => {
  const { url, upstream, running } = await gateway.start([{ batches: each(Array(400).fill(40)), gapMs: 10 }]);
  const answer = post(url, { ...chat, stream: true });
  await expect.poll(() => upstream.seen.sent).toBeGreaterThan(1);
  await running.drain(50, 20_000);
  const events = (await (await answer).text()).trim().split("\n\n");
  expect(JSON.parse(events.at(-1)?.slice(6) ?? "")).toMatchObject({
    error: { code: "unavailable", message: "the gateway is stopping; try again" },
  });
  expect(running.count).toBe(0);
  await expect.poll(() => upstream.seen.cancelled).toBe(1);
});

test("many pauses of a slow client leave no listener behind", async () => {
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => warnings.push(warning);
  process.on("warning", onWarning);
  const batches = Array.from({ length: 1_500 }, () => Array(40).fill(40));
  const { url } = await gateway.start([{ batches }]);
  const headers = { "content-type": "application/json" };
  await new Promise<void>((resolve, reject) => {
    const call = httpRequest(`${url}/v1/chat/completions`, { method: "POST", headers }, (response) => {
      response.on("data", () => {
        response.pause();
        setTimeout(() => response.resume(), 1);
      });
      response.on("end", resolve);
      response.on("error", reject);
    });
    call.on("error", reject);
    call.end(JSON.stringify({ ...chat, stream: true, logprobs: true }));
  });
  process.off("warning", onWarning);
  expect(warnings).toEqual([]);
});
