import type { Jaeger, LocalCluster } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type JaegerSpan, jaegerTrace, startTestJaeger } from "./jaeger.ts";
import { AGGREGATED_TREE, expectTree, namesOf, SPLIT_TREE } from "./span-tree.ts";
import { Standstill, streamInTheMiddle } from "./standstill.ts";
import { answerOf, chatBody, post, startTiny } from "./support.ts";

const STEP_TOKENS = 64;
/** Clocks of one machine, read by different processes: what is cut off below the microsecond, and the pinning to the wall clock. */
const CLOCK_SLACK_MICROS = 2_000;

let jaeger: Jaeger;
let split: LocalCluster;
let mixed: LocalCluster;

beforeAll(async () => {
  jaeger = await startTestJaeger();
  const options = { otlpEndpoint: jaeger.otlpEndpoint, stepTokens: STEP_TOKENS };
  split = await startTiny(options);
  mixed = await startTiny({ ...options, prefill: 0, decode: 0, mixed: 1 });
}, 90_000);
afterAll(async () => {
  await Promise.all([split?.stop(), mixed?.stop()]);
  await jaeger?.stop();
});

/** Asks, and waits until Jaeger has every span of the tree. */
async function traced(cluster: LocalCluster, tree: typeof SPLIT_TREE) {
  const askedAt = performance.now();
  const response = await post(cluster, chatBody("Who built the old mill? ".repeat(10), { ignore_eos: true }));
  const answer = await answerOf(response);
  const traceId = response.headers.get("x-kvasir-trace-id") ?? "";
  const names = Object.keys(tree).sort();
  await expect
    .poll(async () => namesOf(await jaegerTrace(jaeger, traceId)), { timeout: 15_000, interval: 100 })
    .toEqual(names);
  const spans = await jaegerTrace(jaeger, traceId);
  const toldAfterMs = performance.now() - askedAt;
  const one = (name: string): JaegerSpan => {
    const found = spans.find((span) => span.name === name);
    if (found === undefined) throw new Error(`no span ${name} in trace ${traceId}`);
    return found;
  };
  return { answer, spans, one, toldAfterMs };
}

/** What holds for every request, wherever it ran. */
function expectWhole({ answer, spans, one, toldAfterMs }: Awaited<ReturnType<typeof traced>>): void {
  const { usage } = answer;
  const byId = new Map(spans.map((span) => [span.spanId, span]));
  for (const span of spans) {
    expect([span.name, span.tags.error, span.follows]).toEqual([span.name, undefined, []]);
    const parent = byId.get(span.parentSpanId);
    if (parent) expect(span.startMicros).toBeGreaterThanOrEqual(parent.startMicros - CLOCK_SLACK_MICROS);
  }
  const request = one("gateway.request");
  expect(request.tags).toMatchObject({
    "span.kind": "server",
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "kvasir",
    "gen_ai.request.model": "tiny",
    "gen_ai.request.max_tokens": 24,
    "gen_ai.request.temperature": 0,
    "gen_ai.response.model": "tiny",
    "gen_ai.response.finish_reasons": '["length"]',
    "gen_ai.usage.input_tokens": usage.prompt_tokens,
    "gen_ai.usage.output_tokens": 24,
    "http.response.status_code": 200,
    "kvasir.predicted_ttft_ms": expect.any(Number),
    "kvasir.measured_ttft_ms": expect.any(Number),
    "kvasir.predicted_tbt_ms": expect.any(Number),
    "kvasir.measured_tbt_ms": expect.any(Number),
  });
  const place = one("router.place");
  expect(place.tags).toMatchObject({ "kvasir.candidates": 1, "kvasir.queue_wait_ms": expect.any(Number) });
  expect(place.tags["kvasir.scores"]).toMatch(/\d+\.\d ms$/);
  expect(place.tags["kvasir.reason"]).toContain("the only candidate");
  expect(Number(place.tags["kvasir.predicted_ttft_ms"])).toBeGreaterThan(0);
  // The placement itself is over long before the first token, whose time stands on it all the same.
  const measuredMs = Number(place.tags["kvasir.measured_ttft_ms"]);
  expect(measuredMs).toBeGreaterThan((place.endMicros - place.startMicros) / 1_000);
  // The router may hear of it after the request's end, and told it before this trace was whole.
  expect(measuredMs).toBeLessThan(toldAfterMs);
  expect(Number(request.tags["kvasir.measured_ttft_ms"])).toBeLessThan(
    (request.endMicros - request.startMicros) / 1_000,
  );

  const chunks = spans.filter((span) => span.name === "prefill.chunk").sort((a, b) => a.startMicros - b.startMicros);
  expect(chunks).toHaveLength(Math.ceil(usage.prompt_tokens / STEP_TOKENS));
  expect(chunks.map((span) => span.tags["kvasir.start_position"])).toEqual(chunks.map((_, i) => i * STEP_TOKENS));
  expect(chunks.reduce((sum, span) => sum + Number(span.tags["kvasir.tokens"]), 0)).toBe(usage.prompt_tokens);

  const steps = one("decode.steps").events.filter((event) => event.event === "step");
  expect(steps.length).toBeGreaterThan(10);
  expect(steps.at(-1)).toMatchObject({
    "kvasir.token": 24,
    "kvasir.batch": expect.any(Number),
    "kvasir.gap_ms": expect.any(Number),
  });
}

test("Jaeger has the whole tree of a split request, both sidecars included", async () => {
  const whole = await traced(split, SPLIT_TREE);
  const { answer, spans, one } = whole;
  expect(answer.kvasir.mode).toBe("split");
  expectTree(spans, SPLIT_TREE);
  expectWhole(whole);
  const where = Object.fromEntries(spans.map((span) => [span.name, `${span.service} ${span.instance}`]));
  expect(where).toEqual({
    "gateway.request": "kvasir-gateway gateway-0",
    "router.place": "kvasir-router router-0",
    "gateway.generate": "kvasir-gateway gateway-0",
    "decode.generate": "kvasir-decode decode-0",
    "decode.reserve": "kvasir-decode decode-0",
    "prefill.run": "kvasir-prefill prefill-0",
    "prefill.queue": "kvasir-prefill prefill-0",
    "sidecar.prefill": "kvasir-sidecar prefill-0",
    "prefill.chunk": "kvasir-sidecar prefill-0",
    "kv.pull": "kvasir-sidecar decode-0",
    "kv.serve": "kvasir-sidecar prefill-0",
    handover: "kvasir-decode decode-0",
    "decode.steps": "kvasir-decode decode-0",
  });
  const pull = one("kv.pull");
  expect(pull.tags).toMatchObject({
    "kvasir.bytes": answer.kvasir.kv_bytes_moved,
    "kvasir.tokens": answer.usage.prompt_tokens,
    "kvasir.gb_per_s": expect.any(Number),
  });
  expect(Number(pull.tags["kvasir.gb_per_s"])).toBeGreaterThan(0);
  // The hand-over is what comes between the first token and the first step of decode, apart from the transfer.
  expect(one("handover").startMicros).toBeGreaterThanOrEqual(one("sidecar.prefill").endMicros - CLOCK_SLACK_MICROS);
  expect(one("decode.steps").startMicros).toBeGreaterThanOrEqual(one("handover").endMicros - CLOCK_SLACK_MICROS);
});

test("Jaeger has the whole tree of an aggregated request", async () => {
  const whole = await traced(mixed, AGGREGATED_TREE);
  const { answer, spans } = whole;
  expect(answer.kvasir.mode).toBe("aggregated");
  expectTree(spans, AGGREGATED_TREE);
  expectWhole(whole);
  expect(new Set(spans.map((span) => span.instance))).toEqual(new Set(["gateway-0", "router-0", "mixed-0"]));
});

test("a request that is refused ends its trace with the reason", async () => {
  const response = await post(split, chatBody("hi", { model: "another" }));
  expect(response.status).toBe(400);
  const traceId = response.headers.get("x-kvasir-trace-id") ?? "";
  await expect.poll(async () => namesOf(await jaegerTrace(jaeger, traceId)), { timeout: 15_000 }).toHaveLength(1);
  const [request] = await jaegerTrace(jaeger, traceId);
  expect(request?.tags).toMatchObject({ error: true, "http.response.status_code": 400 });
});

test("a request that outlives its decode worker has a resume span that links to the attempt that failed", async () => {
  const cluster = await startTiny({ otlpEndpoint: jaeger.otlpEndpoint, decode: 2 });
  const standstill = new Standstill();
  try {
    const body = chatBody("Who built the old mill?", { max_tokens: 400, ignore_eos: true });
    const stream = await streamInTheMiddle(cluster, standstill, body);
    const victim = stream.worker.name;
    await stream.worker.kill("SIGKILL");
    standstill.end();
    for (let event = await stream.next(); event !== "done"; event = await stream.next()) expect(event).toBeDefined();

    const named = async (name: string) =>
      (await jaegerTrace(jaeger, stream.traceId)).filter((span) => span.name === name);
    await expect.poll(async () => (await named("gateway.request")).length, { timeout: 15_000 }).toBe(1);
    const [request] = await named("gateway.request");
    const [failed, second] = (await named("gateway.generate")).sort((a, b) => a.startMicros - b.startMicros);
    const [resume] = await named("resume");
    expect(failed?.tags).toMatchObject({ error: true, "kvasir.attempt": 1, "kvasir.decode_worker": victim });
    expect(second?.tags).toMatchObject({ "kvasir.attempt": 2 });
    expect(second?.tags["kvasir.decode_worker"]).not.toBe(victim);
    expect(resume?.tags).toMatchObject({ "kvasir.failed_worker": victim, "kvasir.resumed_tokens": expect.any(Number) });
    expect(resume?.follows).toEqual([failed?.spanId]);
    for (const span of [failed, resume, second]) expect(span?.parentSpanId).toBe(request?.spanId);
    expect(request?.tags.error).toBeUndefined();
  } finally {
    standstill.end();
    await cluster.stop();
  }
}, 60_000);
