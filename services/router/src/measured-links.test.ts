import { PREDICTION_DEFAULTS } from "@kvasir/core";
import { KvAccuracy } from "@kvasir/proto";
import type { SpanRecord } from "@kvasir/telemetry";
import { context, trace } from "@opentelemetry/api";
import { expect, test } from "vitest";
import { eventually } from "./testing/fake-peers.ts";
import { HASHES, promptHashes, startTestRouter } from "./testing/test-router.ts";

test("what a worker measured of a link decides whether a prompt is fetched over it, by the KV that the request allows, and its span tells", async () => {
  const { telemetry, router, server, peers } = await startTestRouter();
  const snapshot = { case: "snapshot", value: { isLast: true, hashes: HASHES } } as const;
  const holder = peers.worker("m1").hello({ transferAddress: "m1.test:9" }).cache(1n, snapshot);
  await holder.load({ queuedPromptTokens: 1_000 }).settled();
  const worker = await peers.worker("m2").hello().load().settled();
  const root = telemetry.tracer.startSpan("gateway.request");
  const { traceId } = root.spanContext();
  /** Placed, and over. */
  const place = async (kvAccuracy: KvAccuracy) => {
    const known = telemetry.spans(traceId).length;
    const inTrace = trace.setSpan(context.active(), root);
    const request = context.with(inTrace, () => peers.request(100, 10, { promptHashes, kvAccuracy }));
    const placement = await request.placed();
    request.stream.end();
    await eventually(() => telemetry.spans(traceId).length > known && router.state.placedCount === 0);
    return { placement, attributes: (telemetry.spans(traceId).at(-1) as SpanRecord).attributes };
  };
  const assumed = await place(KvAccuracy.EXACT);
  expect(assumed.placement.fetch).toMatchObject({ holder: { workerId: "m1" }, tokenEnd: 96 });
  const { kvBytesPerSecond } = PREDICTION_DEFAULTS;
  expect(assumed.attributes["kvasir.fetch_bytes_per_second"]).toBe(kvBytesPerSecond);
  expect(assumed.attributes["kvasir.fetch_rate_age_ms"]).toBeUndefined();

  const source = "m1.test:9";
  const tenth = { exactBytesPerSecond: 100e6, nearBytesPerSecond: 100e6, fastBytesPerSecond: 100e6 };
  for (const id of ["m3", "m4"]) {
    const busy = { queuedPromptTokens: 1_000, links: [{ source, ...tenth, ageMs: 0 }] };
    await peers.worker(id).hello().load(busy).settled();
  }
  const { attributes: asOthers } = await place(KvAccuracy.EXACT);
  expect(asOthers).toMatchObject({ "kvasir.fetch_holder": "m1", "kvasir.fetch_rate_of_source": true });
  expect(asOthers["kvasir.fetch_rate_age_ms"]).toBeUndefined();
  expect(asOthers["kvasir.fetch_bytes_per_second"]).toBeLessThan(kvBytesPerSecond);

  const rates = { exactBytesPerSecond: 1e3, nearBytesPerSecond: 2e3, fastBytesPerSecond: 20e6 };
  await worker.load({ links: [{ source, ...rates, ageMs: 3_000 }] }).settled();
  // A report without news leaves what is known.
  await worker.load().settled();
  const exact = await place(KvAccuracy.EXACT);
  expect([exact.placement.decode?.workerId, exact.placement.fetch]).toEqual(["m2", undefined]);
  expect(exact.placement.reason).toMatch(/fetching \d+ ms at \S+ kB\/s, measured \d+ s ago;/);
  const fast = await place(KvAccuracy.FAST);
  expect(fast.placement.fetch).toMatchObject({ holder: { workerId: "m1" }, tokenEnd: 96 });
  expect(fast.attributes).toMatchObject({ "kvasir.fetch_holder": "m1", "kvasir.kv_accuracy": "fast" });
  expect(fast.attributes["kvasir.fetch_rate_age_ms"]).toBeGreaterThanOrEqual(3_000);
  expect(fast.attributes["kvasir.fetch_rate_of_source"]).toBeUndefined();
  // Some way from what was measured to what is assumed of any link.
  expect(fast.attributes["kvasir.fetch_bytes_per_second"]).toBeGreaterThanOrEqual(20e6);
  expect(fast.attributes["kvasir.fetch_bytes_per_second"]).toBeLessThan(kvBytesPerSecond);
  root.end();
  peers.close();
  await server.close(0);
  router.close();
  await telemetry.close();
});
