import type { SpanRecord } from "@kvasir/telemetry";
import { expect, test } from "vitest";
import { explainPlacements } from "./explain-placements.ts";

const span = (startUnixNanos: string, attributes: SpanRecord["attributes"], error?: string): SpanRecord => ({
  traceId: "a".repeat(32),
  spanId: startUnixNanos.padStart(16, "0"),
  parentSpanId: "",
  name: "router.place",
  service: "router",
  instance: "router-0",
  startUnixNanos,
  endUnixNanos: "9",
  attributes: { "kvasir.prompt_tokens": 300, "gen_ai.request.max_tokens": 20, ...attributes },
  ...(error === undefined ? {} : { error }),
});

test("each placement is told in order, with the predicted beside the measured, and refusals with their reason", () => {
  const placed = span("2", {
    "kvasir.reason": "split on p0 → d1: TTFT 80 ms",
    "kvasir.predicted_ttft_ms": 80,
    "kvasir.measured_ttft_ms": 93.25,
    "kvasir.predicted_tbt_ms": 11,
    "kvasir.candidates": 2,
    "kvasir.scores": "p0 → d1: 80.0 ms; d1: 95.0 ms",
  });
  const text = explainPlacements([placed, span("1", {}, "no placement meets the targets")]);
  expect(text.split("\n")).toEqual([
    "placement 1: 300 prompt tokens, at most 20 more",
    "  refused     no placement meets the targets",
    "",
    "placement 2: 300 prompt tokens, at most 20 more",
    "  why         split on p0 → d1: TTFT 80 ms",
    "  TTFT        predicted 80.0 ms, measured 93.3 ms",
    "  TBT         predicted 11.0 ms",
    "  candidates  2: p0 → d1: 80.0 ms; d1: 95.0 ms",
    "",
  ]);
  expect(explainPlacements([])).toMatch(/^no router has a span/);
});
