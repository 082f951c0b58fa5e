import type { LocalCluster } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { expectNothingLeft, metric, post, processOf, startTiny } from "./support.ts";

const FLOOD_COUNT = 120;
const QUIET_COUNT = 6;
const PROMPT_TOKENS = 1_200;
/** Of the flood, between the question of the other tenant's request and its placement: by turns. */
const LET_BEFORE_MAX = 2;

let cluster: LocalCluster;
beforeAll(async () => {
  // As a person would turn it off, to see what arrival alone makes of it.
  const prompts = process.env.KVASIR_TEST_WORKER_QUEUE_PROMPTS;
  const router = prompts === undefined ? [] : ["--worker-queue-prompts", prompts];
  cluster = await startTiny({ mixed: 1, prefill: 0, decode: 0, kvBytes: "1GiB", extraFlags: { router } });
}, 60_000);
afterAll(() => cluster?.stop());

/** All requests of a tenant are of one trace, so that the router tells of them together. */
const TRACES = { quiet: "1".repeat(32), flood: "2".repeat(32), warm: "3".repeat(32) } as const;
type Tenant = keyof typeof TRACES;

let prompts = 0;

/** Milliseconds to the first token of a request of this tenant; rejects when it is refused or aborted. */
async function ttft(tenant: Tenant, fields: object = {}, signal?: AbortSignal): Promise<number> {
  const seed = ++prompts;
  const body = {
    model: "tiny",
    prompt: Array.from({ length: PROMPT_TOKENS }, (_, index) => 300 + ((index * 31 + seed * 17) % 200)),
    max_tokens: 2,
    ignore_eos: true,
    stream: true,
    ...fields,
  };
  const traceparent = `00-${TRACES[tenant]}-00f067aa0ba902b7-01`;
  const headers = { "content-type": "application/json", authorization: `Bearer ${tenant}`, traceparent };
  const start = performance.now();
  const response = await post(cluster, body, { headers, ...(signal ? { signal } : {}) }, "/v1/completions");
  if (response.status !== 200) throw Object.assign(new Error(await response.text()), { status: response.status });
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  await reader.read();
  const ms = performance.now() - start;
  while (!(await reader.read()).done);
  return ms;
}

interface Asked {
  readonly askedAt: number;
  /** Placed, or given up. */
  readonly leftAt: number;
  readonly isPlaced: boolean;
  /** When its first token was told; infinity: never. */
  readonly firstTokenAt: number;
}

/** What a tenant asked of the router, in milliseconds of the router's own clock, whatever this process does meanwhile. */
async function askedBy(tenant: Tenant): Promise<readonly Asked[]> {
  const { adminAddress } = processOf(cluster, "router");
  const response = await fetch(`http://${adminAddress}/debug/traces/${TRACES[tenant]}`);
  const spans = (await response.json()) as {
    readonly name: string;
    readonly startUnixNanos: string;
    readonly endUnixNanos: string;
    readonly attributes: Readonly<Record<string, unknown>>;
  }[];
  return spans
    .filter(({ name }) => name === "router.place")
    .map(({ startUnixNanos, endUnixNanos, attributes }) => {
      const askedAt = Number(startUnixNanos) / 1e6;
      const ttftMs = Number(attributes["kvasir.measured_ttft_ms"] ?? Number.POSITIVE_INFINITY);
      const isPlaced = attributes["kvasir.decode"] !== undefined;
      return { askedAt, leftAt: Number(endUnixNanos) / 1e6, isPlaced, firstTokenAt: askedAt + ttftMs };
    });
}

const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

test(`a tenant that sends ${FLOOD_COUNT} prompts at once makes another one wait for two of them, not for all`, async () => {
  for (let i = 0; i < 3; i++) await ttft("warm");
  const idle = median([await ttft("warm"), await ttft("warm"), await ttft("warm")]);
  const abort = new AbortController();
  const router = processOf(cluster, "router");
  let servedCount = 0;
  // Who is served asks again: so many wait for as long as the others need.
  const floods = Array.from({ length: FLOOD_COUNT }, async () => {
    for (; !abort.signal.aborted; servedCount++) await ttft("flood", {}, abort.signal);
  });
  const flood = Promise.allSettled(floods);
  const isUnderWay = async () => servedCount > 0 && (await metric(router, "kvasir_router_queued")) > FLOOD_COUNT / 2;
  await expect.poll(isUnderWay, { timeout: 20_000 }).toBe(true);

  const quiet: number[] = [];
  for (let i = 0; i < QUIET_COUNT; i++) quiet.push(await ttft("quiet"));
  // What has a target that it cannot meet behind the others is refused when it comes; who may be late is not.
  const strict = { kvasir: { slo: { ttft_ms: Math.max(5, idle / 4) } } };
  const refused = await ttft("flood", strict).catch((error: unknown) => error);
  // A placement is told when its first token is there, or its request over.
  await expect.poll(async () => (await askedBy("quiet")).length).toBe(QUIET_COUNT);
  abort.abort();
  await flood;
  await expect.poll(() => metric(router, "kvasir_router_placed"), { timeout: 20_000 }).toBe(0);
  await expect.poll(() => metric(router, "kvasir_router_queued"), { timeout: 20_000 }).toBe(0);
  const others = await askedBy("flood");
  const turns = (await askedBy("quiet")).map(({ askedAt, leftAt }) => ({
    before: others.filter((other) => other.isPlaced && other.leftAt <= leftAt && leftAt < other.firstTokenAt).length,
    letBefore: others.filter((other) => other.isPlaced && askedAt < other.leftAt && other.leftAt <= leftAt).length,
    overtook: others.filter((other) => other.askedAt < askedAt && leftAt < other.leftAt).length,
  }));

  process.stdout.write(
    `quiet tenant: TTFT ${idle.toFixed(0)} ms idle, median ${median(quiet).toFixed(0)} ms (most ${Math.max(...quiet).toFixed(0)}) beside ${FLOOD_COUNT} prompts of another: ` +
      `${turns.map(({ before }) => before)} before it on the worker, let ${turns.map(({ letBefore }) => letBefore)} of them before, overtook ${turns.map(({ overtook }) => overtook)}\n`,
  );
  for (const { letBefore, overtook } of turns) {
    expect(letBefore).toBeLessThanOrEqual(LET_BEFORE_MAX);
    expect(overtook).toBeGreaterThan(0);
  }
  expect(refused).toMatchObject({ status: 429, message: expect.stringContaining('"code":"slo_unattainable"') });
  await expectNothingLeft(cluster);
}, 120_000);
