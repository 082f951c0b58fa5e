import { nanosFromMs, type RouterOptions } from "@kvasir/core";
import { PlacementMode, ServiceClass } from "@kvasir/proto";
import type { RpcServer } from "@kvasir/rpc";
import type { SpanRecord, Telemetry } from "@kvasir/telemetry";
import { context, trace } from "@opentelemetry/api";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Router } from "./router.ts";
import { eventually, type FakePeers } from "./testing/fake-peers.ts";
import { HASHES, promptHashes, startTestRouter } from "./testing/test-router.ts";

let telemetry: Telemetry;
let router: Router;
let server: RpcServer;
let peers: FakePeers;

async function start(limits: Partial<RouterOptions> = {}): Promise<void> {
  ({ telemetry, router, server, peers } = await startTestRouter(limits));
}

async function stop(): Promise<void> {
  peers.close();
  await server.close(0);
  router.close();
  await telemetry.close();
}

beforeEach(() => start());
afterEach(async () => {
  // Whatever a test did, once its streams are gone nothing is held.
  peers.close();
  await server.close(0);
  await eventually(() => router.state.placedCount === 0 && router.state.queuedCount === 0);
  await eventually(() => router.state.workers().length === 0);
  await stop();
});

test("a request goes where its prompt is cached, or fetches it from there; what a dead worker had is forgotten with it", async () => {
  await up("p0", "p1", "d0", "d1", "d2");
  const holder = peers
    .worker("p2")
    .hello()
    .cache(1n, { case: "snapshot", value: { isLast: true } });
  await holder.load().cache(2n, { case: "stored", value: HASHES }).settled();
  expect(router.state.cachedBlockCountOf("p2")).toBe(3);
  const known = await peers.request(100, 10, { promptHashes }).placed();
  expect(known.prefill?.workerId).toBe("p2");
  expect(known.reason).toContain("(4 of 100 tokens");
  await holder.load({ queuedPromptTokens: 300 }).settled();
  const fetching = await peers.request(100, 10, { promptHashes }).placed();
  expect(fetching.prefill?.workerId).toBe("p0");
  expect(fetching.fetch).toMatchObject({ holder: { workerId: "p2" }, tokenEnd: 96 });
  const unknown = await peers.request(100, 10).placed();
  expect(unknown.prefill?.workerId).toBe("p1");
  expect(unknown.fetch).toBeUndefined();
  holder.stream.cancel();
  await eventually(() => router.state.cachedBlockCountOf("p2") === 0);
  expect((await peers.request(100, 10, { promptHashes }).placed()).fetch).toBeUndefined();
});

test("a missing event is asked for once, and nothing is taken before a snapshot", async () => {
  const worker = await peers
    .worker("m0")
    .hello()
    .cache(1n, { case: "snapshot", value: { isLast: true } })
    .load()
    .settled();
  await worker.cache(3n, { case: "stored", value: HASHES }).cache(4n, { case: "removed", value: HASHES }).settled();
  await eventually(() => worker.snapshotsWanted === 1);
  expect(router.state.cachedBlockCount).toBe(0);
  await worker.cache(4n, { case: "snapshot", value: { isLast: true, hashes: HASHES.subarray(0, 32) } }).settled();
  expect(router.state.cachedBlockCountOf("m0")).toBe(2);
  await worker.cache(5n, { case: "removed", value: HASHES.subarray(16, 32) }).settled();
  expect([router.state.cachedBlockCountOf("m0"), worker.snapshotsWanted]).toEqual([1, 1]);
});

test("hashes that are not whole, or of more blocks than the prompt has, are refused", async () => {
  await up("m0");
  const worker = peers
    .worker("m1")
    .hello()
    .cache(1n, { case: "stored", value: HASHES.subarray(0, 17) });
  expect(await worker.ended).toMatchObject({ reason: "invalid_request", field: "cache.stored" });
  const request = peers.request(95, 10, { promptHashes });
  expect(await request.ended).toMatchObject({ reason: "invalid_request", field: "start.prompt_hashes" });
});

async function up(...workerIds: string[]) {
  return Promise.all(workerIds.map((workerId) => peers.worker(workerId).hello().load().settled()));
}

test("a request is placed on a pair, its stream stays open, and its end frees what it held", async () => {
  await up("p0", "d0");
  const request = peers.request(100, 20);
  const placement = await request.placed();
  expect(placement).toMatchObject({
    mode: PlacementMode.SPLIT,
    prefill: { workerId: "p0", epoch: 1n, address: "p0.test:1" },
    decode: { workerId: "d0", epoch: 1n, address: "d0.test:1" },
    predictedTtftMs: expect.closeTo(102, 0),
    predictedTbtMs: 10,
    reason: expect.stringMatching(/^split on p0 → d0: TTFT 102 ms = .*the only candidate$/),
  });
  expect(router.state.reserved("p0", 1).blockCount).toBe(4);
  request.firstToken();
  await eventually(() => router.state.reserved("p0", 1).blockCount === 0);
  expect(router.state.reserved("d0", 1).blockCount).toBe(4);
  request.stream.end();
  expect(await request.ended).toBeUndefined();
  await eventually(() => router.state.placedCount === 0);
});

test("when full it queues, says the position, and places in order as streams end or are cancelled", async () => {
  await up("m0");
  const first = peers.request(300, 20);
  await first.placed();
  const second = await peers.request(300, 20).queued();
  const third = await peers.request(300, 20).queued();
  expect([second.positions, third.positions]).toEqual([[0], [1]]);
  first.stream.cancel();
  expect((await second.placed()).mode).toBe(PlacementMode.AGGREGATED);
  await eventually(() => third.positions.at(-1) === 0);
  expect(third.placements).toEqual([]);
  second.stream.end();
  await third.placed();
});

test("a request cancelled in the queue is gone from it", async () => {
  await up("m0");
  await peers.request(300, 20).placed();
  const waiting = await peers.request(300, 20).queued();
  waiting.stream.cancel();
  await eventually(() => router.state.queuedCount === 0);
});

async function startAgain(limits: Partial<RouterOptions>): Promise<void> {
  await stop();
  await start(limits);
}

test("a full queue refuses at once, with a time to come back", async () => {
  await startAgain({ queueMax: 1 });
  await up("m0");
  await peers.request(300, 20).placed();
  await peers.request(300, 20).queued();
  const refused = await peers.request(300, 20).ended;
  expect(refused).toMatchObject({
    reason: "overloaded",
    code: "queue_full",
    message: "1 requests wait already, the most that may",
  });
  expect(refused?.retryAfterMs).toBeGreaterThan(0);
  expect(await telemetry.registry.metrics()).toContain(
    'kvasir_router_rejected_total{reason="overloaded",code="queue_full"} 1',
  );
});

test("a wait without room ends as overloaded, not before its time", async () => {
  await startAgain({ queueTimeout: nanosFromMs(600) });
  await up("m0");
  await peers.request(300, 20).placed();
  const timedOut = await (await peers.request(300, 20).queued()).ended;
  expect(timedOut).toMatchObject({ reason: "overloaded", message: expect.stringMatching(/^waited \d+ ms for room; /) });
  expect(Number(/\d+/.exec(timedOut?.message ?? "")?.[0])).toBeGreaterThanOrEqual(600);
  const metrics = await telemetry.registry.metrics();
  expect(metrics).toContain('kvasir_router_rejected_total{reason="overloaded",code="queue_timeout"} 1');
  expect(metrics).toContain('kvasir_router_placements_total{mode="aggregated"} 1');
  expect(metrics).toContain("kvasir_router_placed 1");
  expect(metrics).toContain("kvasir_router_reserved_blocks 10");
  expect(metrics).toContain('kvasir_router_workers{role="mixed",state="live"} 1');
});

test("without a capable worker it waits for the grace, then says unavailable", async () => {
  await startAgain({ noWorkerGrace: nanosFromMs(300) });
  await up("p0");
  const request = await peers.request(10, 10).queued();
  expect(await request.ended).toMatchObject({
    reason: "unavailable",
    message: expect.stringContaining("no live decode or mixed worker attached"),
    retryAfterMs: 300,
  });
});

test("a worker that comes within the grace is used", async () => {
  await up("p0");
  const patient = await peers.request(10, 10).queued();
  await up("d0");
  expect((await patient.placed()).decode?.workerId).toBe("d0");
});

test("a detached worker is out at once, and a retry goes elsewhere", async () => {
  const [m0] = await up("m0", "m1");
  const request = peers.request(100, 20);
  expect((await request.placed()).decode?.workerId).toBe("m0");
  m0?.goodbye();
  expect(await m0?.ended).toBeUndefined();
  await eventually(() => router.state.workers().length === 1);
  request.retry("m0");
  expect((await request.placed(2)).decode?.workerId).toBe("m1");
  expect(router.state.reserved("m0", 1).blockCount).toBe(0);
});

test("a gap, an older epoch and a newer stream end an attach stream with stale_epoch", async () => {
  const gap = peers.worker("d0", 5n).hello().load({}, 1n);
  expect(await gap.ended).toMatchObject({ reason: "stale_epoch", message: "report of d0 has sequence 3 after 1" });
  const current = await peers.worker("d0", 6n).hello().load().settled();
  expect(await peers.worker("d0", 5n).hello().ended).toMatchObject({ reason: "stale_epoch" });
  expect(current.acknowledged).toEqual([1, 2]);
  const newer = await peers.worker("d0", 6n).hello().load().settled();
  expect(await current.ended).toMatchObject({
    reason: "stale_epoch",
    message: "a newer stream of this worker has taken over",
  });
  expect(router.state.workers()).toHaveLength(1);
  newer.stream.cancel();
  await eventually(() => router.state.workers().length === 0);
  expect(await peers.worker("d1").load().ended).toMatchObject({ reason: "stale_epoch" });
});

test.each([
  [{ role: 0 }, "hello.role"],
  [{ workerId: "" }, "hello.worker_id"],
  [{ model: "x".repeat(257) }, "hello.model"],
  [{ blockCount: 0 }, "hello.block_count"],
  [{ layout: undefined }, "hello.layout"],
  [{ layout: { dtype: 1, blockSize: 48, fingerprint: new Uint8Array(16) } }, "hello.layout.block_size"],
  [{ layout: { dtype: 9, blockSize: 32, fingerprint: new Uint8Array(16) } }, "hello.layout.dtype"],
  [{ layout: { dtype: 1, blockSize: 32, fingerprint: new Uint8Array(3) } }, "hello.layout.fingerprint"],
] as const)("a hello with %j is refused by the field", async (extra, field) => {
  const worker = peers.worker("d0").hello(extra as Parameters<ReturnType<FakePeers["worker"]>["hello"]>[0]);
  expect(await worker.ended).toMatchObject({ reason: "invalid_request", field });
  expect(router.state.workers()).toEqual([]);
});

test("a pair that cannot exchange KV is refused when the second worker registers, with the reason, and both serve on", async () => {
  const [prefill] = await up("p0");
  const layout = {
    ...{ modelRevision: "next", dtype: 1, blockSize: 16, layerCount: 2, kvHeadCount: 3, headSize: 16, rope: "none" },
    fingerprint: new Uint8Array(16).fill(8),
  };
  const decode = await peers.worker("d0").hello({ layout }).load().settled();
  expect(prefill?.refused).toEqual([]);
  expect(decode.refused).toEqual(["p0: model_revision is next and test, kv_head_count is 3 and 2"]);
  expect(router.state.workers()).toHaveLength(2);
});

test("hostile loads only make a worker look slow or full", async () => {
  const [worker] = await up("m0");
  await worker
    ?.load({ freeBlocks: 4_294_967_295, prefillTokensPerSecond: Number.NaN, decodeStepMs: Number.NEGATIVE_INFINITY })
    .settled();
  const placement = await peers.request(100, 20).placed();
  expect(placement).toMatchObject({ predictedTtftMs: expect.closeTo(200, 0), predictedTbtMs: 50 });
});

test.each([
  ["an unknown model", { model: "huge" }, "model", 'model "huge" is not served here; use tiny'],
  ["no model", { model: "" }, "start.model", "start.model has 0 characters; use 1 to 256"],
  ["no prompt", { promptTokenCount: 0 }, "prompt_token_count", "the prompt has no tokens; send at least one"],
  ["no output", { maxTokens: 0 }, "max_tokens", "max_tokens is 0; use at least 1"],
  [
    "too much",
    { maxTokens: 4_294_967_295 },
    "max_tokens",
    expect.stringContaining("exceed the context of 320; use max_tokens 310 or less"),
  ],
  [
    "a wrong scope",
    { tenantScope: new Uint8Array(3) },
    "start.tenant_scope",
    "the tenant scope has 3 bytes; it has 16",
  ],
])("a request with %s is invalid", async (_, extra, field, message) => {
  await up("m0");
  expect(await peers.request(10, 10, extra).ended).toMatchObject({ reason: "invalid_request", field, message });
});

test("messages out of order are invalid, and free what was held", async () => {
  await up("m0");
  const twice = peers.request(10, 10);
  await twice.placed();
  twice.stream.write({ kind: { case: "start", value: { requestId: "r", model: "tiny" } } });
  expect(await twice.ended).toMatchObject({ reason: "invalid_request", field: "start" });
  await eventually(() => router.state.placedCount === 0);
  const empty = peers.client.place();
  const failed = new Promise<Error>((resolve) => empty.on("error", resolve));
  empty.write({});
  expect((await failed).message).toContain("the message is empty");
});

test("the cluster is described as it is, with why it is not ready", async () => {
  expect(await peers.client.describeCluster({})).toMatchObject({
    ready: false,
    notReadyReason: "no worker is attached",
  });
  await up("p0");
  expect(await peers.client.describeCluster({})).toMatchObject({
    ready: false,
    notReadyReason: "no decode or mixed worker is attached",
  });
  await up("d0");
  const request = peers.request(100, 20);
  await request.placed();
  expect(await peers.client.describeCluster({})).toMatchObject({
    ready: true,
    queued: 0,
    placed: 1,
    workers: [
      { hello: { workerId: "d0", adminAddress: "d0.test:2" }, epoch: 1n, load: { freeBlocks: 11 } },
      { hello: { workerId: "p0" } },
    ],
  });
});

test("each placement is a span of the caller's trace, with candidates, scores and predictions", async () => {
  await up("m0", "m1");
  const root = telemetry.tracer.startSpan("gateway.request");
  const { traceId, spanId } = root.spanContext();
  const request = await context.with(trace.setSpan(context.active(), root), async () => peers.request(100, 20));
  await request.placed();
  request.retry("m0");
  await request.placed(2);
  request.firstToken();
  const refused = context.with(trace.setSpan(context.active(), root), () => peers.request(10, 10, { model: "huge" }));
  await refused.ended;
  await eventually(() => telemetry.spans(traceId).length === 3);
  const [first, second, third] = telemetry.spans(traceId) as [SpanRecord, SpanRecord, SpanRecord];
  expect(first).toMatchObject({
    name: "router.place",
    parentSpanId: spanId,
    instance: "router-0",
    attributes: {
      "kvasir.request_id": "r",
      "kvasir.mode": "aggregated",
      "kvasir.decode": "m0",
      "kvasir.candidates": 2,
      "kvasir.scores": "m0: 100.0 ms; m1: 100.0 ms",
      "kvasir.predicted_ttft_ms": expect.closeTo(100, 0),
      "kvasir.prompt_tokens": 100,
    },
  });
  expect(first.attributes).not.toHaveProperty("kvasir.measured_ttft_ms");
  expect(second.attributes).toMatchObject({
    "kvasir.decode": "m1",
    "kvasir.retry": 1,
    "kvasir.measured_ttft_ms": expect.any(Number),
  });
  expect(third).toMatchObject({
    error: expect.stringContaining('"huge" is not served'),
    attributes: { "error.type": "invalid_request" },
  });
  root.end();
});

test("the wait for room is a span of its own below the placement, and its end is not the end of the wait for the first token", async () => {
  await up("m0");
  const holder = peers.request(300, 20);
  await holder.placed();
  const root = telemetry.tracer.startSpan("gateway.request");
  const { traceId } = root.spanContext();
  const waiting = context.with(trace.setSpan(context.active(), root), () => peers.request(300, 20));
  await waiting.queued();
  holder.stream.end();
  await waiting.placed();
  const placedAt = Date.now();
  await new Promise((resolve) => setTimeout(resolve, 40));
  waiting.firstToken();
  await eventually(() => telemetry.spans(traceId).length === 2);
  const spans = new Map(telemetry.spans(traceId).map((span) => [span.name, span]));
  const place = spans.get("router.place");
  const queue = spans.get("router.queue");
  expect(queue?.parentSpanId).toBe(place?.spanId);
  expect(queue?.attributes).toMatchObject({ "kvasir.position": 0 });
  expect(queue?.endUnixNanos).toBe(place?.endUnixNanos);
  expect(Number(place?.endUnixNanos) / 1e6).toBeLessThan(placedAt + 30);
  expect(Number(place?.attributes["kvasir.measured_ttft_ms"])).toBeGreaterThanOrEqual(39);
  root.end();
});

test("a router that stands by follows its workers, refuses requests, and places as soon as it leads", async () => {
  await up("m0");
  const placed = peers.request(100, 20);
  expect((await placed.placed()).leaderToken).toBe(7n);
  router.setLeaderToken(0);
  expect(await placed.ended).toMatchObject({ reason: "unavailable", message: "another router leads now; ask it" });
  expect(await peers.request(100, 20).ended).toMatchObject({ reason: "unavailable" });
  const { workers, leaderToken } = await peers.client.describeCluster({});
  expect([workers.map(({ hello }) => hello?.workerId), leaderToken]).toEqual([["m0"], 0n]);
  router.setLeaderToken(9);
  expect((await peers.request(100, 20).placed()).leaderToken).toBe(9n);
});

test("a tenant's share, class and place among its own decide who is next; the class it is served as comes with the placement", async () => {
  await up("m0");
  const tenant = (byte: number) => new Uint8Array(16).fill(byte);
  const first = peers.request(300, 20, { tenant: tenant(1) });
  await first.placed();
  const flex = await peers.request(300, 20, { tenant: tenant(2), serviceClass: ServiceClass.FLEX }).queued();
  const late = await peers.request(300, 20, { tenant: tenant(1), priority: 5 }).queued();
  const urgent = await peers.request(300, 20, { tenant: tenant(1), priority: -5 }).queued();
  const order: string[] = [];
  const note = async (name: string, request: typeof first) => {
    const { serviceClass } = await request.placed();
    order.push(`${name} ${ServiceClass[serviceClass]}`);
    request.stream.end();
  };
  const all = [note("flex", flex), note("late", late), note("urgent", urgent)];
  first.stream.end();
  await Promise.all(all);
  expect(order).toEqual(["urgent DEFAULT", "late DEFAULT", "flex FLEX"]);
});

test("what a gateway says of an answer's length is predicted for the next one of its kind, and never more than was asked for", async () => {
  await up("m0");
  const answer = async (outputTokenCount: number, promptClass = new Uint8Array()) => {
    const request = peers.request(100, 60, { promptClass });
    const { predictedOutputTokens } = await request.placed();
    request.stream.write({ kind: { case: "finished", value: { outputTokenCount, tbtMs: 10 } } });
    request.stream.end();
    expect(await request.ended).toBeUndefined();
    return predictedOutputTokens;
  };
  expect(await answer(12)).toBe(60);
  expect(await answer(12)).toBe(12);
  const kind = new Uint8Array(16).fill(9);
  for (let i = 0; i < 8; i++) await answer(4_000_000_000, kind);
  expect(await answer(5, kind)).toBeGreaterThan(55);
  expect(await answer(5)).toBeLessThan(55);
});

test("who may be late and is goes on as flex, and says so", async () => {
  await up("m0");
  const refused = await peers.request(300, 20, { ttftTargetMs: 20 }).ended;
  expect(refused).toMatchObject({ reason: "overloaded", code: "slo_unattainable" });
  const placement = await peers.request(300, 20, { ttftTargetMs: 20, mayBeLate: true }).placed();
  expect(placement).toMatchObject({ serviceClass: ServiceClass.FLEX, isBestEffort: true });
});

test.each([
  [{ tenant: new Uint8Array(3) }, "start.tenant"],
  [{ sessionKey: new Uint8Array(33) }, "start.session_key"],
  [{ promptClass: new Uint8Array(33) }, "start.prompt_class"],
])("a request with %j is refused by the field", async (extra, field) => {
  await up("m0");
  expect(await peers.request(10, 10, extra).ended).toMatchObject({ reason: "invalid_request", field });
});
