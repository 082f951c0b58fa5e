import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
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

test("a request is explained by its id or that of its answer: why it went there, and each part predicted beside measured", async () => {
  const headers = { "content-type": "application/json", "x-request-id": "order/66%7" };
  const body = chatBody("Who built the old mill? ".repeat(30), { kvasir: { slo: { ttft_ms: 60_000 } } });
  const plain = await post(cluster, body);
  const { id } = (await plain.json()) as { readonly id: string };
  await (await post(cluster, body, { headers })).text();
  const main = join(import.meta.dirname, "../../packages/cli/src/explain.ts");
  const explain = async (request: string) => {
    const argv = [main, request, "--redis-url", cluster.redisUrl, "--cluster", cluster.cluster];
    return (await promisify(execFile)(process.execPath, argv)).stdout;
  };
  for (const request of [id, "order/66%7"]) {
    // The last spans of a request end a moment after its answer.
    await expect.poll(() => explain(request), { timeout: 10_000 }).toMatch(/output +\d+ tokens +24 tokens/);
    const text = await explain(request);
    expect(text).toMatch(
      /^placement 1: \d+ prompt tokens, at most 24 more; class default, targets TTFT 5\d+(\.\d)? ms, tenant [0-9a-f]{8}\n/,
    );
    expect(text).toMatch(/why {9}(split|aggregated) on /);
    for (const part of ["compute", "TTFT", "TBT"]) {
      expect(text).toMatch(new RegExp(`${part} +[\\d.]+ ms +[\\d.]+ ms`));
    }
  }
  await expect(explain("nobody")).rejects.toThrow(/no id of a request that gateway-0, router-0 remember/);
});
