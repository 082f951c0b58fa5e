import { expect, test } from "vitest";
import type { SpanRecord } from "./span-record.ts";
import { renderTimeline } from "./timeline.ts";

const ORIGIN_NANOS = 1_763_700_000_000_000_000n;

function span(
  spanId: string,
  parentSpanId: string,
  name: string,
  instance: string,
  startMs: number,
  endMs: number,
  extra: Partial<SpanRecord> = {},
): SpanRecord {
  return {
    traceId: "0af7651916cd43dd8448eb211c80319c",
    spanId,
    parentSpanId,
    name,
    service: instance.replace(/-\d+$/, ""),
    instance,
    startUnixNanos: (ORIGIN_NANOS + BigInt(Math.round(startMs * 1e6))).toString(),
    endUnixNanos: (ORIGIN_NANOS + BigInt(Math.round(endMs * 1e6))).toString(),
    attributes: {},
    ...extra,
  };
}

test("a request is an indented tree with offsets, durations, bars, processes and attributes", () => {
  const spans = [
    span("05", "04", "kv.pull", "decode-0", 12, 90.5, {
      attributes: { "kvasir.bytes": 1048576, "kvasir.gbps": 1.23456 },
    }),
    span("01", "", "gateway.request", "gateway-0", 0, 240, { attributes: { "gen_ai.request.model": "tiny" } }),
    span("04", "03", "prefill.run", "prefill-0", 10, 100),
    span("02", "01", "router.place", "router-0", 1.25, 2, {
      attributes: { "kvasir.reason": "two words", "rpc.system": "grpc" },
    }),
    span("03", "01", "decode.generate", "decode-0", 2.5, 239, {
      error: "the prefill worker is gone",
      attributes: { "kvasir.why": "a sentence that is too long to stand on the line of its span", "kvasir.n": 1 },
    }),
  ];
  expect(renderTimeline(spans)).toBe(`\
trace 0af7651916cd43dd8448eb211c80319c: 5 spans of 4 processes in 240.0 ms
  start ms    took ms
       0.0      240.0 |========================| gateway.request   gateway-0 model=tiny
       1.3        0.8 |=                       |   router.place    router-0  reason="two words"
       2.5      236.5 |========================|   decode.generate decode-0  n=1
                                                   ERROR: the prefill worker is gone
                                                   why: a sentence that is too long to stand on the line of its span
      10.0       90.0 | =========              |     prefill.run   prefill-0
      12.0       78.5 | =========              |       kv.pull     decode-0  bytes=1048576 gbps=1.235
`);
});

test("a span without its parent stands at the root with a mark, and clock skew only cuts its bar", () => {
  const spans = [
    span("01", "", "gateway.request", "gateway-0", 0, 100),
    span("03", "99", "decode.steps", "decode-0", 50, 130),
    span("02", "01", "router.place", "router-0", -3, -1),
  ];
  expect(renderTimeline(spans)).toBe(`\
trace 0af7651916cd43dd8448eb211c80319c: 3 spans of 3 processes in 130.0 ms
  start ms    took ms
       0.0      100.0 |===================     | gateway.request gateway-0
      -3.0        2.0 |=                       |   router.place  router-0
      50.0       80.0 |         ===============| ? decode.steps  decode-0
`);
});

test("the same span twice counts once, and spans that name each other as parents are still shown", () => {
  const a = span("0a", "0b", "a", "x-0", 0, 1);
  const b = span("0b", "0a", "b", "x-0", 0, 1);
  expect(renderTimeline([a, b, a])).toBe(`\
trace 0af7651916cd43dd8448eb211c80319c: 2 spans of 1 processes in 1.0 ms
  start ms    took ms
       0.0        1.0 |========================| ? a x-0
       0.0        1.0 |========================|   b x-0
`);
});

test("nothing is said plainly; control characters never reach the terminal; a timeline of no length has bars", () => {
  expect(renderTimeline([])).toBe("no spans\n");
  const hostile = span("01", "", "x", "x-0", 0, 0, { attributes: { text: "a\u001b[2Jb", long: "z".repeat(700) } });
  const text = renderTimeline([hostile]);
  expect(text).not.toContain("\u001b");
  expect(text.split("\n").slice(2)).toEqual([
    `       0.0        0.0 |=${" ".repeat(23)}| x x-0 text="a [2Jb"`,
    `${" ".repeat(49)}long: ${"z".repeat(599)}…`,
    "",
  ]);
});
