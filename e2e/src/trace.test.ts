import type { LocalCluster } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { expectTree, namesOf, SPLIT_TREE } from "./span-tree.ts";
import { answerOf, chatBody, post, startTiny } from "./support.ts";

let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startTiny();
}, 60_000);
afterAll(() => cluster?.stop());

test("one request leaves one trace through every process, parent by parent, sidecars included", async () => {
  const response = await post(cluster, chatBody("Who built the old mill? ".repeat(30)));
  const traceId = response.headers.get("x-kvasir-trace-id") ?? "";
  const { usage, kvasir } = await answerOf(response);
  expect(kvasir.trace_id).toBe(traceId);

  const names = Object.keys(SPLIT_TREE).sort();
  await expect.poll(async () => namesOf(await cluster.spans(traceId)), { timeout: 5_000 }).toEqual(names);
  const spans = await cluster.spans(traceId);
  for (const span of spans) expect(span.traceId).toBe(traceId);
  expectTree(spans, SPLIT_TREE);
  const pull = spans.find((span) => span.name === "kv.pull");
  expect(Number(pull?.attributes["kvasir.bytes"])).toBe(kvasir.kv_bytes_moved);
  expect(Number(pull?.attributes["kvasir.gb_per_s"])).toBeGreaterThan(0);
  const request = spans.find((span) => span.name === "gateway.request");
  expect(Number(request?.attributes["gen_ai.usage.input_tokens"])).toBe(usage.prompt_tokens);
});

test("a caller's trace is continued", async () => {
  const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
  const headers = { "content-type": "application/json", traceparent: `00-${traceId}-00f067aa0ba902b7-01` };
  const response = await post(cluster, chatBody("hi"), { headers });
  expect(response.headers.get("x-kvasir-trace-id")).toBe(traceId);
  await response.body?.cancel();
});
