import type { SpanRecord } from "@kvasir/telemetry";
import { expect, test } from "vitest";
import { explainPlacements } from "./explain-placements.ts";

const span = (
  startUnixNanos: string,
  attributes: SpanRecord["attributes"],
  extra: Partial<SpanRecord> = {},
): SpanRecord => ({
  traceId: "a".repeat(32),
  spanId: startUnixNanos.padStart(16, "0"),
  parentSpanId: "",
  name: "router.place",
  service: "router",
  instance: "router-0",
  startUnixNanos,
  endUnixNanos: "9",
  attributes: { "kvasir.prompt_tokens": 300, "gen_ai.request.max_tokens": 20, ...attributes },
  ...extra,
});

test("each placement is told in order, with every part predicted beside what was measured, and refusals with their reason", () => {
  const spans = [
    span("2", {
      "kvasir.reason": "split on p0 → d1: TTFT 80 ms",
      "kvasir.tenant": "0123456789abcdef",
      "kvasir.service_class": "priority",
      "kvasir.served_class": "flex",
      "kvasir.best_effort": true,
      "kvasir.ttft_target_ms": 70.04,
      "kvasir.queue_wait_ms": 12,
      "kvasir.predicted_queue_ms": 3,
      "kvasir.predicted_compute_ms": 75,
      "kvasir.predicted_handover_ms": 2,
      "kvasir.kv_accuracy": "fast",
      "kvasir.fetch_holder": "s0",
      "kvasir.fetch_bytes_per_second": 12.34e6,
      "kvasir.fetch_rate_age_ms": 2_500,
      "kvasir.handover_bytes_per_second": 50e6,
      "kvasir.handover_rate_of_source": true,
      "kvasir.predicted_ttft_ms": 80,
      "kvasir.measured_ttft_ms": 93.25,
      "kvasir.predicted_tbt_ms": 11,
      "kvasir.predicted_output_tokens": 17.4,
      "kvasir.candidates": 2,
      "kvasir.scores": "p0 → d1: 80.0 ms; d1: 95.0 ms",
    }),
    span("3", {}, { name: "gateway.generate", parentSpanId: "0" }),
    span("4", {}, { name: "decode.generate", parentSpanId: "3".padStart(16, "0") }),
    span(
      "5",
      {
        "kvasir.queue_ms": 1.5,
        "kvasir.compute_ms": 82,
        "kvasir.fetch_holder": "s0",
        "kvasir.fetched_tokens": 64,
        "kvasir.fetch_wanted_tokens": 128,
        "kvasir.fetch_failure": "late",
      },
      { name: "prefill.run", parentSpanId: "4".padStart(16, "0") },
    ),
    ...["51", "52"].map((start) =>
      span(
        start,
        { "kvasir.lent_blocks": 2, "kvasir.lent_blocks_from_disk": start === "51" ? 2 : 0 },
        { name: "store.lend", parentSpanId: "5".padStart(16, "0") },
      ),
    ),
    span("6", {}, { name: "handover", parentSpanId: "4".padStart(16, "0"), endUnixNanos: "4000006" }),
    span("0", { "kvasir.measured_tbt_ms": 9.5, "gen_ai.usage.output_tokens": 20 }, { name: "gateway.request" }),
  ];
  const text = explainPlacements([...spans, span("1", {}, { error: "no placement meets the targets" })]);
  expect(text.split("\n")).toEqual([
    "placement 1: 300 prompt tokens, at most 20 more; class default, no targets, tenant –",
    "  refused     no placement meets the targets",
    "",
    "placement 2: 300 prompt tokens, at most 20 more; class priority, served as flex, targets TTFT 70 ms, on a best effort, as they cannot be met, tenant 01234567",
    "  why         split on p0 → d1: TTFT 80 ms",
    "  links       fetch from s0 at 12.3 MB/s of fast KV, measured 2.5 s before; hand-over at 50.0 MB/s of fast KV, as others measured from there",
    "  fetched     64 of 128 tokens from s0; which lent 4 blocks, 2 of them from disk; the rest was computed: late",
    "                    predicted       measured",
    "  waited                    –        12.0 ms",
    "  queue                3.0 ms         1.5 ms",
    "  compute             75.0 ms        82.0 ms",
    "  hand-over            2.0 ms         4.0 ms",
    "  TTFT                80.0 ms        93.3 ms",
    "  TBT                 11.0 ms         9.5 ms",
    "  output            17 tokens      20 tokens",
    "  candidates  2: p0 → d1: 80.0 ms; d1: 95.0 ms",
    "",
  ]);
  expect(explainPlacements([])).toMatch(/^no router has a span/);
});
