import { ROOT_CONTEXT, type Tracer, trace } from "@opentelemetry/api";
import { TracerProvider } from "@opentelemetry/sdk-trace";
import { expect, test } from "vitest";
import { FineStart } from "./fine-clock.ts";
import { SpanRing } from "./span-ring.ts";

function world(spanCount: number): { ring: SpanRing; tracer: Tracer } {
  const ring = new SpanRing({ service: "router", instance: "router-0" }, spanCount);
  return { ring, tracer: new TracerProvider({ spanProcessors: [new FineStart(), ring] }).getTracer("test") };
}

test("a trace is found by its id, with parents, attributes and errors", () => {
  const { ring, tracer } = world(8);
  const parent = tracer.startSpan("parent", { attributes: { list: ["a", "b"], n: 1.5 } });
  const inParent = trace.setSpan(ROOT_CONTEXT, parent);
  const child = tracer.startSpan("child", {}, inParent);
  child.setStatus({ code: 2, message: "no" });
  child.end();
  parent.end();
  const { traceId, spanId } = parent.spanContext();
  expect(ring.spans(traceId)).toMatchObject([
    { name: "child", parentSpanId: spanId, error: "no", service: "router", instance: "router-0" },
    { name: "parent", parentSpanId: "", attributes: { list: '["a","b"]', n: 1.5 } },
  ]);
  expect(ring.spans("f".repeat(32))).toEqual([]);
});

test("traces are found by an attribute of any of their spans, the latest first, each once", () => {
  const { ring, tracer } = world(4);
  const ids = ["a", "b", "a", "a"].map((id, index) => {
    const span = tracer.startSpan(`s${index}`, { attributes: { "kvasir.request_id": id } });
    if (index === 2) tracer.startSpan("child", {}, trace.setSpan(ROOT_CONTEXT, span)).end();
    span.end();
    return span.spanContext().traceId;
  });
  expect(ring.tracesWith("kvasir.request_id", "a")).toEqual([ids[3], ids[2]]);
  expect(ring.tracesWith("kvasir.request_id", "b")).toEqual([ids[1]]);
  expect(ring.tracesWith("kvasir.request_id", "c")).toEqual([]);
});

test("the ring keeps the newest spans and forgets whole traces with their last span", () => {
  const { ring, tracer } = world(3);
  const ids = [0, 1, 2, 3, 4].map((index) => {
    const span = tracer.startSpan(`s${index}`);
    span.end();
    return span.spanContext().traceId;
  });
  expect(ids.map((id) => ring.spans(id).map((span) => span.name))).toEqual([[], [], ["s2"], ["s3"], ["s4"]]);
  expect(ring.traceCount).toBe(3);
});

test("interleaved traces overwrite each their own oldest span first", () => {
  const { ring, tracer } = world(4);
  const roots = [tracer.startSpan("a"), tracer.startSpan("b")];
  for (let index = 0; index < 6; index++) {
    const root = roots[index % 2];
    if (root) tracer.startSpan(`${index}`, {}, trace.setSpan(ROOT_CONTEXT, root)).end();
  }
  expect(roots.map((root) => ring.spans(root.spanContext().traceId).map((span) => span.name))).toEqual([
    ["2", "4"],
    ["3", "5"],
  ]);
});

test("starts are finer than a millisecond and never after the end", () => {
  const { ring, tracer } = world(64);
  const starts = Array.from({ length: 50 }, () => {
    const before = Date.now();
    const span = tracer.startSpan("s");
    span.end();
    const after = Date.now();
    const record = ring.spans(span.spanContext().traceId)[0];
    expect(BigInt(record?.endUnixNanos ?? 0) >= BigInt(record?.startUnixNanos ?? 1)).toBe(true);
    const startMs = Number(record?.startUnixNanos) / 1e6;
    expect(startMs).toBeGreaterThan(before - 50);
    expect(startMs).toBeLessThan(after + 50);
    return BigInt(record?.startUnixNanos ?? 0);
  });
  expect(new Set(starts.map((start) => start % 1_000_000n)).size).toBeGreaterThan(10);
  expect([...starts].sort((a, b) => (a < b ? -1 : 1))).toEqual(starts);
});
