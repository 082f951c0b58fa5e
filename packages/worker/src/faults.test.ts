import { setTimeout as sleep } from "node:timers/promises";
import { PlacementMode, PrefillService, type RunResponse } from "@kvasir/proto";
import { createClient, errorFromService } from "@kvasir/rpc";
import { fakeToken } from "@kvasir/testkit/fake-kernel";
import { afterEach, expect, test } from "vitest";
import { ADOPTION_MS } from "./prefill/prefill-service.ts";
import { generate, refOf, startTestWorker, type TestWorker, type TestWorkerOptions } from "./testing/harness.ts";
import { eventually, expectQuiet, Gate } from "./testing/quiet.ts";
import type { Role } from "./worker.ts";

const running: TestWorker[] = [];

async function start(workerId: string, role: Role, options: TestWorkerOptions = {}): Promise<TestWorker> {
  const started = await startTestWorker(workerId, role, options);
  running.push(started);
  return started;
}

async function pair(options: TestWorkerOptions = {}): Promise<{ prefill: TestWorker; decode: TestWorker }> {
  return { prefill: await start("prefill", "prefill", options), decode: await start("decode", "decode", options) };
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((started) => started.stop()));
});

async function works(workers: { prefill: TestWorker; decode: TestWorker }): Promise<void> {
  const { tokenIds, error } = await generate(workers).result;
  expect(error).toBeUndefined();
  expect(tokenIds).toHaveLength(12);
}

test("when a sidecar dies in mid-stream its requests fail as what another worker mends, and a new incarnation with a higher epoch takes over", async () => {
  const workers = await pair();
  for (const victim of [workers.decode, workers.prefill]) {
    const before = refOf(victim).epoch;
    const gate = new Gate(2);
    victim.faults.beforeStep = gate.pass;
    const generation = generate({ ...workers, promptTokenCount: 100, maxTokens: 100 });
    await gate.reached();
    await victim.kernel().kill();
    gate.open();
    // Which of the two is told depends on what breaks first: the call to the dead sidecar's worker or the pull from it.
    const { error } = await generation.result;
    expect(["unavailable", victim === workers.prefill && "lease_expired"]).toContain(error?.reason);
    await eventually(() => expect(refOf(victim).epoch).toBeGreaterThan(before));
    await works(workers);
    await expectQuiet(workers.prefill, workers.decode);
  }
});

test("a placement of an earlier incarnation is refused as stale, at decode and at prefill", async () => {
  const { prefill, decode } = await pair();
  const old = { prefill: refOf(prefill), decode: refOf(decode) };
  const stale = async (placement: typeof old) => {
    const change = { placement: { mode: 2, ...placement } };
    expect((await generate({ prefill, decode, change }).result).error).toMatchObject({ reason: "stale_epoch" });
  };
  await stale({ ...old, decode: { ...old.decode, epoch: old.decode.epoch - 1n } });
  await stale({ ...old, prefill: { ...old.prefill, epoch: old.prefill.epoch - 1n } });
  await expectQuiet(prefill, decode);
});

test("a broken, a hung and a lying device all end the incarnation, not the worker", async () => {
  const workers = await pair({ stepStallMs: 2_000 });
  const { decode } = workers;
  const healthy = { ...decode.faults };
  for (const fault of [{ failStepId: 3 }, { hangStepId: 3 }, { lieStepId: 3 }]) {
    const before = refOf(decode).epoch;
    Object.assign(decode.faults, fault);
    expect((await generate(workers).result).error).toMatchObject({ reason: "unavailable" });
    Object.assign(decode.faults, healthy);
    await eventually(() => expect(refOf(decode).epoch).toBeGreaterThan(before));
    await works(workers);
  }
  await expectQuiet(workers.prefill, decode);
});

test("a fetch that is refused ends the request with its reason and frees both sides", async () => {
  const workers = await pair();
  const { faults } = workers.decode;
  const healthy = { ...faults };
  for (const reason of ["digest_mismatch", "lease_expired"] as const) {
    Object.assign(faults, healthy, { refuseFetch: reason });
    expect((await generate(workers).result).error).toMatchObject({ reason, workerId: "prefill" });
    await expectQuiet(workers.prefill, workers.decode);
  }
  Object.assign(faults, healthy);
  await works(workers);
});

test("what a broken and a stalled fetch brought is kept, and a short rest of the prompt is computed by decode", async () => {
  const causes: string[] = [];
  // A stalled fetch is given up after a lease without a block.
  const workers = await pair({ leaseMs: 1_500, onLocalPrefill: (cause) => causes.push(cause) });
  const { faults, kernel } = workers.decode;
  const whole = await generate(workers).result;
  const healthy = { ...faults };
  for (const fault of [{ dropFetchAfter: 16 }, { stallFetchAfter: 16 }, { dropFetchAfter: 32 }]) {
    const before = kernel().device.promptTokensComputed;
    Object.assign(faults, healthy, fault);
    const { error, tokenIds, finished } = await generate(workers).result;
    expect([error, tokenIds]).toEqual([undefined, whole.tokenIds]);
    const kept = fault.dropFetchAfter === 32 ? 32n : 16n;
    expect(kernel().device.promptTokensComputed - before).toBe(40n - kept);
    expect(finished?.prefillWorkerId).toBe("decode");
    await expectQuiet(workers.prefill, workers.decode);
  }
  expect(causes).toEqual(["prefill_lost", "prefill_lost", "prefill_lost"]);
});

test("a long rest of a prompt comes from another prefill worker, and only what is missing", async () => {
  const workers = await pair();
  const { prefill, decode } = workers;
  const other = await start("other", "prefill");
  const whole = await generate({ ...workers, promptTokenCount: 120 }).result;
  const before = decode.kernel().kvBytesReceived;
  const gate = new Gate(1);
  prefill.faults.beforeStep = gate.pass;
  const placement = {
    mode: PlacementMode.SPLIT,
    prefill: refOf(prefill),
    decode: refOf(decode),
    otherPrefills: [refOf(other)],
  };
  const running = generate({ decode, promptTokenCount: 120, change: { placement } });
  await eventually(() => expect(decode.kernel().kvBytesReceived).toBeGreaterThan(before));
  prefill.kernel().kill("test");
  gate.open();
  const { error, tokenIds, finished } = await running.result;
  expect([error, tokenIds]).toEqual([undefined, whole.tokenIds]);
  expect(finished?.prefillWorkerId).toBe("other");
  expect(decode.kernel().kvBytesReceived - before).toBe(finished?.kvBytesMoved);
  expect(finished?.kvBytesMoved).toBe(whole.finished?.kvBytesMoved);
  expect(decode.kernel().device.promptTokensComputed).toBe(0n);
  await expectQuiet(other, decode);
});

test("a decode worker that is lost without a word leaves what was computed to another one, once", async () => {
  const { prefill, decode } = await pair();
  const whole = await generate({ prefill, decode }).result;
  const computed = prefill.kernel().device.promptTokensComputed;
  const transferId = new Uint8Array(16).fill(3);
  const lost = openRun(prefill, transferId);
  await eventually(() => expect(lost.kinds()).toEqual(["ticket", "firstToken"]));
  lost.call.cancel();
  await lost.ended;
  const change = { transferId, adoptsTransfer: true };
  for (const expected of [0n, 40n]) {
    const before = prefill.kernel().device.promptTokensComputed;
    expect((await generate({ prefill, decode, change }).result).error).toBeUndefined();
    expect(prefill.kernel().device.promptTokensComputed - before).toBe(expected);
  }
  expect(computed + 80n).toBe(prefill.kernel().device.promptTokensComputed);
  expect(whole.error).toBeUndefined();
  await expectQuiet(prefill, decode);
});

test("an export that cannot be opened ends the request with its reason", async () => {
  const workers = await pair();
  workers.prefill.faults.refusePublish = "overloaded";
  expect((await generate(workers).result).error).toMatchObject({ reason: "overloaded" });
  await expectQuiet(workers.prefill, workers.decode);
});

test("a cancel in any state frees everything on both sides, even while fences are slow", async () => {
  const workers = await pair({ blockCount: 12 });
  const { prefill, decode } = workers;
  const healthy = { ...prefill.faults };
  type Situation = (gate: Gate) => {
    readonly prefill?: Partial<typeof healthy>;
    readonly decode?: Partial<typeof healthy>;
  };
  const situations: Readonly<Record<string, Situation>> = {
    publishing: (gate) => ({ prefill: { beforePublish: gate.pass } }),
    computing: (gate) => ({ prefill: { beforeStep: gate.pass } }),
    pulling: (gate) => ({ decode: { beforeFetchedBlock: gate.pass } }),
    stalled: (gate) => ({ decode: { beforeFetchedBlock: async () => void gate.pass(), stallFetchAfter: 16 } }),
    decoding: (gate) => ({ decode: { beforeStep: gate.pass } }),
  };
  for (const [name, faultsOf] of Object.entries(situations)) {
    // Neither of the two requests is through with it before.
    const gate = new Gate(name === "publishing" ? 0 : name === "computing" ? 1 : 2);
    const faults = faultsOf(gate);
    Object.assign(prefill.faults, healthy, { fenceDelayMs: 30 }, faults.prefill);
    Object.assign(decode.faults, healthy, { fenceDelayMs: 30 }, faults.decode);
    const generations = [1, 2].map(() => generate({ ...workers, promptTokenCount: 60, maxTokens: 30 }));
    await gate.reached();
    for (const generation of generations) generation.cancel();
    for (const generation of generations) expect((await generation.result).error?.reason, name).toBe("cancelled");
    gate.open();
    await expectQuiet(prefill, decode);
  }
  Object.assign(prefill.faults, healthy);
  Object.assign(decode.faults, healthy);
  await works(workers);
});

test("a cancel in the queue, and one in an aggregated generation, free everything", async () => {
  const mixed = await start("mixed", "mixed", { blockCount: 4, admissionWaitMs: 30_000 });
  const gate = new Gate(5);
  mixed.faults.beforeStep = gate.pass;
  const first = generate({ decode: mixed, promptTokenCount: 30, maxTokens: 30 });
  await gate.reached();
  const second = generate({ decode: mixed, promptTokenCount: 30, maxTokens: 30 });
  await eventually(() => expect(mixed.worker.supervisor.current?.engine.scheduler.waitingCount).toBe(1));
  second.cancel();
  first.cancel();
  expect((await second.result).accepted).toBe(false);
  gate.open();
  await expectQuiet(mixed);
});

test("a request's own deadline ends it and frees everything", async () => {
  const workers = await pair();
  workers.decode.faults.stepDelayMs = 20;
  const { error } = await generate({ ...workers, maxTokens: 200, deadlineMs: 150 }).result;
  expect(error).toMatchObject({ reason: "deadline_exceeded" });
  await expectQuiet(workers.prefill, workers.decode);
});

/** A decode side that is only a protocol: for what ours would never do. */
function openRun(prefill: TestWorker, transferId: Uint8Array, promptTokenCount = 40) {
  const client = createClient(PrefillService, prefill.address);
  const call = client.run();
  const responses: RunResponse[] = [];
  const ended = new Promise<string>((resolve) => {
    call.on("data", (response: RunResponse) => responses.push(response));
    call.on("error", (error) => resolve(errorFromService(error).reason));
    call.on("end", () => resolve("ended"));
  });
  void ended.then(() => client.channel.close());
  const incarnation = prefill.worker.supervisor.current;
  call.write({
    kind: {
      case: "start",
      value: {
        requestId: "request",
        transferId,
        promptTokenIds: Array.from({ length: promptTokenCount }, () => 1),
        sampling: { seed: 5n, maxTokens: 9 },
        tenantScope: new Uint8Array(16),
        expectedEpoch: incarnation?.epoch ?? 0n,
        layoutFingerprint: incarnation?.layout.fingerprint ?? new Uint8Array(),
      },
    },
  });
  return { call, responses, ended, kinds: () => responses.map((response) => response.kind.case) };
}

test("what nobody pulls is pinned until the lease ends, not longer", async () => {
  const prefill = await start("prefill", "prefill", { leaseMs: 1_500 });
  const run = openRun(prefill, new Uint8Array(16).fill(1));
  await eventually(() => {
    expect(run.kinds()).toEqual(["ticket", "firstToken"]);
    expect(prefill.worker.supervisor.current?.audit()).toMatchObject({ pinned: 3, orphaned: 0 });
  });
  expect(await run.ended).toBe("lease_expired");
  await expectQuiet(prefill);
});

test("a decode side that goes away with a word frees the pins, without waiting for the lease or another decode side", async () => {
  const prefill = await start("prefill", "prefill", { leaseMs: 60_000 });
  const run = openRun(prefill, new Uint8Array(16).fill(1));
  await eventually(() => expect(run.kinds()).toEqual(["ticket", "firstToken"]));
  const leftAt = performance.now();
  run.call.write({ kind: { case: "aborted", value: {} } });
  await expectQuiet(prefill);
  // As long as another one would be waited for.
  expect(performance.now() - leftAt).toBeLessThan(ADOPTION_MS);
});

test.each(["cancel", "end"] as const)(
  "one that goes away without a word, by %s, is waited for, or another in its place",
  async (leave) => {
    const prefill = await start("prefill", "prefill", { leaseMs: 1_500 });
    const run = openRun(prefill, new Uint8Array(16).fill(2));
    await eventually(() => expect(run.kinds()).toEqual(["ticket", "firstToken"]));
    const leftAt = performance.now();
    run.call[leave]();
    await expectQuiet(prefill);
    expect(performance.now() - leftAt).toBeGreaterThan(500);
  },
);

test("a decode worker's heartbeats keep a lease as long as the prompt takes, and the gateway hears of progress", async () => {
  const workers = await pair({ leaseMs: 2_000 });
  workers.prefill.faults.stepDelayMs = 1_000;
  const askedAt = performance.now();
  const { error, progressCount } = await generate({ ...workers, promptTokenCount: 90 }).result;
  expect(error).toBeUndefined();
  // The gateway hears once a second that there is a first token to wait for.
  expect(progressCount).toBeGreaterThanOrEqual(1);
  expect(progressCount).toBeLessThanOrEqual((performance.now() - askedAt) / 1_000);
  await expectQuiet(workers.prefill, workers.decode);
});

test("a second call with a transfer id gets the same answers and takes over; after the end the id is spent", async () => {
  const prefill = await start("prefill", "prefill");
  const transferId = new Uint8Array(16).fill(7);
  const first = openRun(prefill, transferId);
  await eventually(() => expect(first.kinds()).toEqual(["ticket", "firstToken"]));
  const second = openRun(prefill, transferId);
  await eventually(() => expect(second.responses).toEqual(first.responses));
  expect(await first.ended).toBe("cancelled");
  expect(prefill.worker.supervisor.current?.audit()).toMatchObject({ pinned: 3 });
  expect(prefill.kernel().device.promptTokensComputed).toBe(40n);
  second.call.write({ kind: { case: "received", value: {} } });
  second.call.end();
  expect(await second.ended).toBe("ended");
  expect(await openRun(prefill, transferId).ended).toBe("lease_expired");
  await expectQuiet(prefill);
});

test("computed prompts that nobody pulls stop further admission at their share, and others are told overloaded", async () => {
  const prefill = await start("prefill", "prefill", { blockCount: 4, admissionWaitMs: 100 });
  const first = openRun(prefill, new Uint8Array(16).fill(1), 48);
  await eventually(() => expect(first.kinds()).toEqual(["ticket", "firstToken"]));
  const second = openRun(prefill, new Uint8Array(16).fill(2), 10);
  expect(await second.ended).toBe("overloaded");
  expect(second.kinds()).toEqual([]);
  first.call.write({ kind: { case: "aborted", value: {} } });
  await expectQuiet(prefill);
});

test("200 requests of which some are cancelled at random moments, with faults: each ends once and nothing is left", async () => {
  const workers = await pair({ blockCount: 40, admissionWaitMs: 10_000 });
  const mixed = await start("mixed", "mixed", { blockCount: 40, admissionWaitMs: 10_000 });
  for (const worker of [workers.decode, mixed]) worker.faults.stepDelayMs = 1;
  workers.decode.faults.fenceDelayMs = 3;
  workers.prefill.faults.fenceDelayMs = 3;
  let seed = 12_345;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
    return (seed >>> 8) % below;
  };
  const ends = new Map<string, number>();
  const one = async (index: number) => {
    const promptTokenCount = 1 + random(150);
    const maxTokens = 1 + random(40);
    const target = index % 3 === 0 ? { decode: mixed } : workers;
    const generation = generate({ ...target, promptTokenCount, maxTokens, seed: BigInt(index) });
    const cancelAfterMs = random(60);
    if (index % 10 === 0) void sleep(cancelAfterMs).then(() => generation.cancel());
    const { tokenIds, error } = await generation.result;
    const expected = Array.from({ length: maxTokens }, (_, token) => fakeToken(promptTokenCount, BigInt(index), token));
    expect(tokenIds).toEqual(expected.slice(0, error ? tokenIds.length : maxTokens));
    const end = error?.reason ?? "finished";
    ends.set(end, (ends.get(end) ?? 0) + 1);
  };
  let next = 0;
  await Promise.all(
    Array.from({ length: 16 }, async () => {
      while (next < 200) await one(next++);
    }),
  );
  expect((ends.get("finished") ?? 0) + (ends.get("cancelled") ?? 0)).toBe(200);
  expect(ends.get("cancelled") ?? 0).toBeLessThanOrEqual(20);
  await expectQuiet(workers.prefill, workers.decode, mixed);
});

test("a prefill worker that cannot be reached is unavailable, one whose sidecar is too slow to publish lets the lease end", async () => {
  const { prefill, decode } = await pair({ leaseMs: 300 });
  const nowhere = { ...refOf(prefill), address: "127.0.0.1:1" };
  const change = { placement: { mode: 2, decode: refOf(decode), prefill: nowhere } };
  expect((await generate({ prefill, decode, change }).result).error).toMatchObject({ reason: "unavailable" });
  prefill.faults.publishDelayMs = 1_000;
  expect((await generate({ prefill, decode }).result).error).toMatchObject({ reason: "lease_expired" });
  await expectQuiet(decode, prefill);
});

test("a hand-over call that is no hand-over is refused by name", async () => {
  const prefill = await start("prefill", "prefill");
  const short = openRun(prefill, new Uint8Array(3));
  expect(await short.ended).toBe("invalid_request");
  const client = createClient(PrefillService, prefill.address);
  const call = client.run();
  call.resume();
  const ended = new Promise<string>((resolve) => call.on("error", (error) => resolve(errorFromService(error).field)));
  call.write({ kind: { case: "received", value: {} } });
  expect(await ended).toBe("start");
  client.channel.close();
  await expectQuiet(prefill);
});
