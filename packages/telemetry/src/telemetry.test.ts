import http2 from "node:http2";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { KvasirError } from "@kvasir/core";
import { context, propagation, trace } from "@opentelemetry/api";
import { Counter } from "prom-client";
import { afterEach, expect, test } from "vitest";
import { type AdminServer, startAdminServer } from "./admin-server.ts";
import { inSpan } from "./in-span.ts";
import type { SpanRecord } from "./span-record.ts";
import { startTelemetry, type Telemetry } from "./telemetry.ts";

let telemetry: Telemetry | undefined;
let admin: AdminServer | undefined;
afterEach(async () => {
  await admin?.close();
  await telemetry?.close();
});

async function get(path: string, init: RequestInit = {}): Promise<{ status: number; text: string }> {
  const response = await fetch(`http://${admin?.address}${path}`, init);
  return { status: response.status, text: await response.text() };
}

test("context follows async calls, and travels as a W3C traceparent", async () => {
  telemetry = startTelemetry({ service: "router", instanceId: "router-0", logLevel: "silent" });
  const { tracer } = telemetry;
  const carrier: Record<string, string> = {};
  const traceId = await inSpan(tracer, "outer", {}, async (outer) => {
    await delay(1);
    await inSpan(tracer, "inner", {}, async () => {
      await delay(1);
      propagation.inject(context.active(), carrier);
    });
    return outer.spanContext().traceId;
  });
  expect(carrier.traceparent).toMatch(new RegExp(`^00-${traceId}-[0-9a-f]{16}-01$`));
  const remote = propagation.extract(context.active(), carrier);
  expect(trace.getSpanContext(remote)?.traceId).toBe(traceId);
  const [inner, outer] = telemetry.spans(traceId);
  expect(inner).toMatchObject({ name: "inner", parentSpanId: outer?.spanId });
  expect(BigInt(outer?.endUnixNanos ?? 0) - BigInt(outer?.startUnixNanos ?? 0)).toBeGreaterThan(1_000_000n);
});

test("a span that throws is marked with the reason", async () => {
  telemetry = startTelemetry({ service: "router", instanceId: "router-0", logLevel: "silent" });
  let traceId = "";
  const failing = inSpan(telemetry.tracer, "place", {}, (span) => {
    traceId = span.spanContext().traceId;
    return Promise.reject(new KvasirError({ reason: "overloaded", message: "full" }));
  });
  await expect(failing).rejects.toThrow("full");
  expect(telemetry.spans(traceId)[0]).toMatchObject({ error: "full", attributes: { "error.type": "overloaded" } });
});

test("the admin server answers probes, metrics and traces", async () => {
  telemetry = startTelemetry({ service: "router", instanceId: "router-0", logLevel: "silent" });
  const extra: SpanRecord = {
    traceId: "",
    spanId: "1",
    parentSpanId: "",
    name: "kv.pull",
    service: "sidecar",
    instance: "decode-0",
    startUnixNanos: "1",
    endUnixNanos: "2",
    attributes: {},
  };
  let ready = false;
  let isSidecarThere = true;
  admin = await startAdminServer({
    listen: "127.0.0.1:0",
    telemetry,
    isReady: () => (ready ? { ready } : { ready, reason: "no worker is attached" }),
    extraSpans: (traceId) =>
      isSidecarThere ? Promise.resolve([{ ...extra, traceId }]) : Promise.reject(new Error("gone")),
  });
  new Counter({ name: "kvasir_things_total", help: "Things.", registers: [telemetry.registry] }).inc(3);

  expect(await get("/live")).toEqual({ status: 200, text: '{"live":true}' });
  expect(await get("/ready")).toEqual({ status: 503, text: '{"ready":false,"reason":"no worker is attached"}' });
  ready = true;
  expect(await get("/health")).toEqual({ status: 200, text: '{"ready":true}' });
  const metrics = (await get("/metrics")).text;
  expect(metrics).toContain("\nkvasir_things_total 3\n");
  expect(metrics).toContain("process_cpu_seconds_total");

  const span = telemetry.tracer.startSpan("router.place");
  span.end();
  const { traceId } = span.spanContext();
  const names = async () => JSON.parse((await get(`/debug/traces/${traceId}`)).text).map((s: SpanRecord) => s.name);
  expect(await names()).toEqual(["router.place", "kv.pull"]);
  isSidecarThere = false;
  expect(await names()).toEqual(["router.place"]);

  expect((await get("/debug/traces/../../etc/passwd")).status).toBe(404);
  expect(JSON.parse((await get("/debug/requests/none%20such")).text)).toEqual([]);
  expect((await get("/debug/requests/%E0")).status).toBe(400);
  expect(await get("/debug/traces/xyz")).toEqual({
    status: 400,
    text: '{"error":"trace id \\"xyz\\" is not 32 hex digits"}',
  });
  expect((await get("/nothing")).status).toBe(404);
  expect((await get("/live", { method: "POST", body: "x" })).status).toBe(405);
});

test("a port in use is a clear error", async () => {
  telemetry = startTelemetry({ service: "router", instanceId: "router-0", logLevel: "silent" });
  admin = await startAdminServer({ listen: "127.0.0.1:0", telemetry, isReady: () => ({ ready: true }) });
  const listen = admin.address;
  await expect(startAdminServer({ listen, telemetry, isReady: () => ({ ready: true }) })).rejects.toThrow(
    `cannot listen on ${listen}: `,
  );
});

test("with an endpoint, ended spans leave by OTLP over gRPC at the latest on close", async () => {
  const received: { path: string; body: Buffer }[] = [];
  const collector = http2.createServer();
  collector.on("stream", (stream, headers) => {
    const chunks: Buffer[] = [];
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.on("end", () => {
      received.push({ path: `${headers[":path"]}`, body: Buffer.concat(chunks) });
      stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
      stream.end(Buffer.alloc(5));
    });
  });
  await new Promise<void>((resolve) => collector.listen(0, "127.0.0.1", resolve));
  const { port } = collector.address() as AddressInfo;
  const exporting = startTelemetry({
    service: "router",
    instanceId: "router-0",
    otlpEndpoint: `http://127.0.0.1:${port}`,
    logLevel: "silent",
  });
  exporting.tracer.startSpan("router.place").end();
  await exporting.close();
  collector.close();
  expect(received.map((call) => call.path)).toEqual(["/opentelemetry.proto.collector.trace.v1.TraceService/Export"]);
  expect(received[0]?.body.includes("router.place")).toBe(true);
  expect(received[0]?.body.includes("kvasir-router")).toBe(true);
});
