import { PlacementMode } from "@kvasir/proto";
import { startTelemetry } from "@kvasir/telemetry";
import { afterAll, afterEach, expect, test } from "vitest";
import { registerMetrics } from "./metrics.ts";
import { generate, refOf, startTestWorker, type TestWorker } from "./testing/harness.ts";
import { eventually, expectQuiet, Gate } from "./testing/quiet.ts";

const telemetry = startTelemetry({ service: "decode", instanceId: "test", logLevel: "silent" });
const running: TestWorker[] = [];
afterEach(() => Promise.all(running.splice(0).map((started) => started.stop())));
afterAll(() => telemetry.close());

async function pair() {
  const [leaseMs, tracer] = [60_000, telemetry.tracer];
  const prefill = await startTestWorker("prefill", "prefill", { tracer, leaseMs });
  const decode = await startTestWorker("decode", "decode", { tracer, leaseMs });
  running.push(prefill, decode);
  return { prefill, decode };
}

test("one request is one tree of spans over both workers", async () => {
  const workers = await pair();
  const root = telemetry.tracer.startSpan("gateway.request");
  const { finished } = await generate({ ...workers, parent: root }).result;
  root.end();
  expect(finished?.timings).toMatchObject({ firstTokenMs: expect.any(Number), decodeMs: expect.any(Number) });
  const { traceId, spanId } = root.spanContext();
  await eventually(() => expect(telemetry.spans(traceId)).toHaveLength(7));
  const spans = telemetry.spans(traceId);
  const byId = new Map(spans.map((span) => [span.spanId, span.name]));
  const parents = Object.fromEntries(spans.map((span) => [span.name, byId.get(span.parentSpanId)]));
  expect(parents).toEqual({
    "gateway.request": undefined,
    "decode.generate": "gateway.request",
    "decode.reserve": "decode.generate",
    "prefill.run": "decode.generate",
    "prefill.queue": "prefill.run",
    handover: "decode.generate",
    "decode.steps": "decode.generate",
  });
  expect(spans.find((span) => span.name === "decode.generate")?.parentSpanId).toBe(spanId);
  expect(spans.find((span) => span.name === "decode.generate")?.attributes).toMatchObject({
    "kvasir.prompt_tokens": 40,
    "kvasir.generated_tokens": 12,
    "kvasir.kv_bytes_moved": 2560,
    "kvasir.prefill_worker_id": "prefill",
  });
  expect(spans.find((span) => span.name === "prefill.run")?.attributes).toMatchObject({
    "kvasir.handover_end": "received",
  });
  expect(workers.prefill.kernel().traceparents.join()).toContain(traceId);
  expect(workers.decode.kernel().traceparents.join()).toContain(traceId);
});

test("metrics tell blocks by state, the sidecar's own counters, and the parts of a step", async () => {
  const workers = await pair();
  const { prefill, decode } = workers;
  const registered = registerMetrics(
    telemetry.registry,
    "tiny",
    () => decode.worker.supervisor.current,
    () => 0,
  );
  registered.stepAnswered({ wallNanos: 2e6, deviceNanos: 1e6, idleNanos: undefined });
  const value = async (name: string) => {
    const text = await telemetry.registry.metrics();
    return Number(
      text
        .split("\n")
        .find((line) => line.startsWith(`${name} `))
        ?.split(" ")[1],
    );
  };
  decode.faults.stallFetchAfter = 16;
  const generation = generate(workers);
  await generation.firstToken;
  expect(await value('kvasir_blocks{state="leased"}')).toBe(4);
  expect(await value('kvasir_blocks{state="total"}')).toBe(64);
  expect(await value("kvasir_sidecar_fetches_running")).toBe(1);
  expect(await value('kvasir_sequences{state="waiting"}')).toBe(1);
  generation.cancel();
  await generation.result;
  await expectQuiet(prefill, decode);
  decode.faults.stallFetchAfter = Number.POSITIVE_INFINITY;
  await generate(workers).result;
  // The sidecar's own counters are asked for now and then.
  await expect.poll(() => value("kvasir_sidecar_decode_tokens_computed_total")).toBe(11);
  expect(await value('kvasir_blocks{state="leased"}')).toBe(0);
  expect(await value('kvasir_blocks{state="orphaned"}')).toBe(0);
  expect(await value("kvasir_sidecar_prompt_tokens_computed_total")).toBe(0);
  expect(await value('kvasir_step_seconds_count{part="wall"}')).toBe(1);
  expect(await value('kvasir_step_seconds_count{part="idle"}')).toBeNaN();
});

test("requests are metered under vLLM's names and our own, on the side where they happen", async () => {
  telemetry.registry.clear();
  let decode: TestWorker | undefined;
  const current = () => decode?.worker.supervisor.current;
  const { requests } = registerMetrics(telemetry.registry, "tiny", current, () => 0);
  const prefill = await startTestWorker("prefill", "prefill", { requests: { ...requests, queued: () => undefined } });
  decode = await startTestWorker("decode", "decode", { requests });
  running.push(prefill, decode);
  const samples = async () => {
    const lines = (await telemetry.registry.metrics()).split("\n").filter((line) => !line.startsWith("#"));
    return new Map(lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.split(" ").at(-1))]));
  };
  const { tokenIds } = await generate({ prefill, decode }).result;
  expect(tokenIds).toHaveLength(12);
  await generate({ prefill, decode, maxTokens: 1 }).result;
  const resumed = [{ choiceIndex: 0, tokenIds: [1, 2, 3] }];
  await generate({ prefill, decode, change: { resumed } }).result;
  decode.faults.stallFetchAfter = 16;
  const cancelled = generate({ prefill, decode });
  await cancelled.firstToken;
  cancelled.cancel();
  await cancelled.result;
  await expectQuiet(prefill, decode);

  const found = await samples();
  const expected: Record<string, number> = {
    'vllm:request_success_total{model_name="tiny",finished_reason="length"}': 3,
    'vllm:request_success_total{model_name="tiny",finished_reason="abort"}': 1,
    'vllm:generation_tokens_total{model_name="tiny"}': 12 + 1 + 9 + 1,
    'vllm:time_to_first_token_seconds_count{model_name="tiny"}': 3,
    'vllm:inter_token_latency_seconds_count{model_name="tiny"}': 11 + 9,
    'vllm:e2e_request_latency_seconds_count{model_name="tiny"}': 3,
    'vllm:request_prefill_time_seconds_count{model_name="tiny"}': 4,
    'vllm:num_requests_running{model_name="tiny"}': 0,
    'vllm:kv_cache_usage_perc{model_name="tiny"}': 0,
    'kvasir_handovers_total{side="decode",outcome="joined"}': 2,
    'kvasir_handovers_total{side="decode",outcome="finished"}': 1,
    'kvasir_handovers_total{side="decode",outcome="cancelled"}': 1,
    'kvasir_handovers_total{side="prefill",outcome="received"}': 2,
    'kvasir_transfers_total{outcome="joined"}': 2,
    'kvasir_transfers_total{outcome="cancelled"}': 1,
    kvasir_handover_seconds_count: 2,
    kvasir_reprefills_total: 1,
    kvasir_reprefilled_tokens_total: 43,
    'kvasir_leases{purpose="reservation"}': 0,
    'kvasir_leases{purpose="pin"}': 0,
  };
  expect(Object.fromEntries(Object.keys(expected).map((name) => [name, found.get(name)]))).toEqual(expected);
  expect(found.get("kvasir_transfer_bytes_total")).toBeGreaterThan(2 * 2560);
});

test("a pull that goes on from another prefill worker is counted on the request's span", async () => {
  const { prefill, decode } = await pair();
  const other = await startTestWorker("other", "prefill", { tracer: telemetry.tracer });
  running.push(other);
  const gate = new Gate(1);
  prefill.faults.beforeStep = gate.pass;
  const refs = { prefill: refOf(prefill), decode: refOf(decode), otherPrefills: [refOf(other)] };
  const root = telemetry.tracer.startSpan("gateway.request");
  const change = { placement: { mode: PlacementMode.SPLIT, ...refs } };
  const generation = generate({ decode, promptTokenCount: 120, parent: root, change });
  await eventually(() => expect(decode.kernel().kvBytesReceived).toBeGreaterThan(0n));
  prefill.kernel().kill("test");
  gate.open();
  expect((await generation.result).error).toBeUndefined();
  root.end();
  const { traceId } = root.spanContext();
  const whole = () => telemetry.spans(traceId).find((span) => span.name === "decode.generate");
  await eventually(() => expect(whole()?.attributes).toMatchObject({ "kvasir.pull_retries": 1 }));
  await expectQuiet(other, decode);
});
