import type { LocalCluster } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { expectNothingLeft, metric, post, processOf, startTiny } from "./support.ts";

const FLOOD_COUNT = 120;
const QUIET_COUNT = 6;
const PROMPT_TOKENS = 1_200;
/** Of the flood, for each request of the other tenant: two by turns, and those that are served while its request and answer wait for a busy machine. */
const SERVED_EACH_MAX = 10;

let cluster: LocalCluster;
beforeAll(async () => {
  // As a person would turn it off, to see what arrival alone makes of it.
  const prompts = process.env.KVASIR_TEST_WORKER_QUEUE_PROMPTS;
  const router = prompts === undefined ? [] : ["--worker-queue-prompts", prompts];
  cluster = await startTiny({ mixed: 1, prefill: 0, decode: 0, kvBytes: "1GiB", extraFlags: { router } });
}, 60_000);
afterAll(() => cluster?.stop());

let prompts = 0;

/** Milliseconds to the first token of a request of this tenant; rejects when it is refused or aborted. */
async function ttft(tenant: string, fields: object = {}, signal?: AbortSignal): Promise<number> {
  const seed = ++prompts;
  const body = {
    model: "tiny",
    prompt: Array.from({ length: PROMPT_TOKENS }, (_, index) => 300 + ((index * 31 + seed * 17) % 200)),
    max_tokens: 2,
    ignore_eos: true,
    stream: true,
    ...fields,
  };
  const headers = { "content-type": "application/json", authorization: `Bearer ${tenant}` };
  const start = performance.now();
  const response = await post(cluster, body, { headers, ...(signal ? { signal } : {}) }, "/v1/completions");
  if (response.status !== 200) throw Object.assign(new Error(await response.text()), { status: response.status });
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  await reader.read();
  const ms = performance.now() - start;
  while (!(await reader.read()).done);
  return ms;
}

const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

test(`a tenant that sends ${FLOOD_COUNT} prompts at once makes another one wait for two of them, not for all`, async () => {
  for (let i = 0; i < 3; i++) await ttft("quiet");
  const idle = median([await ttft("quiet"), await ttft("quiet"), await ttft("quiet")]);
  const abort = new AbortController();
  const flood = Array.from({ length: FLOOD_COUNT }, () => ttft("flood", {}, abort.signal));
  const ends: number[] = [];
  for (const request of flood) request.then((ms) => ends.push(ms)).catch(() => undefined);
  await expect.poll(() => ends.length, { timeout: 20_000, interval: 5 }).toBeGreaterThan(0);

  const quiet: number[] = [];
  for (let i = 0; i < QUIET_COUNT; i++) quiet.push(await ttft("quiet"));
  const servedMeanwhile = ends.length;
  const router = processOf(cluster, "router");
  const waiting = await metric(router, "kvasir_router_queued");
  // What has a target that it cannot meet behind the others is refused when it comes; who may be late is not.
  const strict = { kvasir: { slo: { ttft_ms: Math.max(5, idle / 4) } } };
  const refused = await ttft("flood", strict).catch((error: unknown) => error);
  abort.abort();
  await Promise.allSettled(flood);

  process.stdout.write(
    `quiet tenant: TTFT ${idle.toFixed(0)} ms idle, median ${median(quiet).toFixed(0)} ms (most ${Math.max(...quiet).toFixed(0)}) beside ${FLOOD_COUNT} prompts of another, ` +
      `which were served ${servedMeanwhile} meanwhile, the slowest after ${Math.max(...ends).toFixed(0)} ms; ${waiting} still waited\n`,
  );
  // Before each of its requests at most what a worker has already, and one of each tenant's in turn; counted, since times here are those of a busy machine.
  expect(servedMeanwhile).toBeLessThanOrEqual(SERVED_EACH_MAX * QUIET_COUNT);
  expect(waiting).toBeGreaterThanOrEqual(FLOOD_COUNT - SERVED_EACH_MAX * QUIET_COUNT - 4);
  expect(refused).toMatchObject({ status: 429, message: expect.stringContaining('"code":"slo_unattainable"') });
  await expect.poll(() => metric(router, "kvasir_router_queued"), { timeout: 5_000 }).toBe(0);
  await expect.poll(() => metric(router, "kvasir_router_placed"), { timeout: 5_000 }).toBe(0);
  await expectNothingLeft(cluster);
}, 60_000);
