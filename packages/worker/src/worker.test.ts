import { fakeToken } from "@kvasir/testkit/fake-kernel";
import { afterEach, expect, test } from "vitest";
import { generate, refOf, startTestWorker, type TestWorker, type TestWorkerOptions } from "./testing/harness.ts";
import { eventually, expectQuiet, Gate } from "./testing/quiet.ts";
import type { Role } from "./worker.ts";

const running: TestWorker[] = [];

async function start(workerId: string, role: Role, options: TestWorkerOptions = {}): Promise<TestWorker> {
  const started = await startTestWorker(workerId, role, options);
  running.push(started);
  return started;
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((started) => started.stop()));
});

const expectedTokens = (promptTokenCount: number, count: number, seed = 5n) =>
  Array.from({ length: count }, (_, index) => fakeToken(promptTokenCount, seed, index));

test("a mixed worker computes prompt and output, and tells how it ended", async () => {
  const mixed = await start("mixed", "mixed");
  const { tokenIds, finished, error } = await generate({ decode: mixed }).result;
  expect(error).toBeUndefined();
  expect(tokenIds).toEqual(expectedTokens(40, 12));
  expect(finished).toMatchObject({ reason: 2, prefillWorkerId: "mixed", decodeWorkerId: "mixed", kvBytesMoved: 0n });
  await expectQuiet(mixed);
});

test("prefill and decode together give the same tokens; decode computes no prompt token", async () => {
  const prefill = await start("prefill", "prefill");
  const decode = await start("decode", "decode");
  const { tokenIds, finished, error } = await generate({ prefill, decode, promptTokenCount: 100 }).result;
  expect(error).toBeUndefined();
  expect(tokenIds).toEqual(expectedTokens(100, 12));
  expect(finished).toMatchObject({ prefillWorkerId: "prefill", decodeWorkerId: "decode", kvBytesMoved: 6400n });
  expect(decode.kernel().device.promptTokensComputed).toBe(0n);
  expect(decode.kernel().device.decodeTokensComputed).toBe(11n);
  expect(prefill.kernel().device.promptTokensComputed).toBe(100n);
  await expectQuiet(prefill, decode);
});

test("a stop token ends the generation, is named and is not among the tokens", async () => {
  const prefill = await start("prefill", "prefill");
  const decode = await start("decode", "decode");
  for (const index of [0, 1, 4]) {
    const stopTokenIds = [fakeToken(40, 5n, index)];
    const { tokenIds, finished } = await generate({ prefill, decode, stopTokenIds }).result;
    expect(tokenIds).toEqual(expectedTokens(40, index));
    expect(finished).toMatchObject({ reason: 1, stopTokenId: stopTokenIds[0] });
  }
  const { tokenIds, finished } = await generate({ prefill, decode, maxTokens: 1 }).result;
  expect(tokenIds).toEqual(expectedTokens(40, 1));
  expect(finished?.reason).toBe(2);
  await expectQuiet(prefill, decode);
});

test("the first token is with the client before the transfer ends", async () => {
  const prefill = await start("prefill", "prefill");
  const decode = await start("decode", "decode");
  decode.faults.stallFetchAfter = 32;
  const generation = generate({ prefill, decode });
  await generation.firstToken;
  expect(decode.worker.supervisor.current?.audit()).toMatchObject({ leased: 4, used: 3 });
  expect(prefill.worker.supervisor.current?.audit()).toMatchObject({ pinned: 3 });
  generation.cancel();
  expect((await generation.result).tokenIds).toEqual(expectedTokens(40, 1));
  await expectQuiet(prefill, decode);
});

test("output is cut at the context, and a request that can never fit is refused by name", async () => {
  const mixed = await start("mixed", "mixed", { contextLength: 64, blockCount: 3 });
  expect((await generate({ decode: mixed, promptTokenCount: 60, maxTokens: 100 }).result).error).toMatchObject({
    reason: "invalid_request",
    field: "max_tokens",
  });
  expect((await generate({ decode: mixed, promptTokenCount: 64 }).result).error).toMatchObject({
    reason: "invalid_request",
    field: "prompt_token_ids",
  });
  const small = await start("small", "mixed", { contextLength: 64 });
  expect((await generate({ decode: small, promptTokenCount: 60, maxTokens: 100 }).result).tokenIds).toHaveLength(4);
});

test("what is wrong in a request is named", async () => {
  const mixed = await start("mixed", "mixed");
  const decode = await start("decode", "decode");
  const cases: [Parameters<typeof generate>[0], object][] = [
    [{ decode: mixed, change: { promptTokenIds: [] } }, { field: "prompt_token_ids" }],
    [{ decode: mixed, change: { promptTokenIds: [5000] } }, { field: "prompt_token_ids" }],
    [{ decode: mixed, change: { tenantScope: new Uint8Array(3) } }, { field: "tenant_scope" }],
    [{ decode: mixed, change: { sampling: { maxTokens: 1, temperature: Number.NaN } } }, { field: "temperature" }],
    [{ decode: mixed, change: { sampling: { maxTokens: 1, topP: 1.5 } } }, { field: "top_p" }],
    [{ decode: mixed, change: { sampling: { maxTokens: 0 } } }, { field: "max_tokens" }],
    [{ decode: mixed, change: { placement: { mode: 1 } } }, { field: "placement" }],
    [
      { decode: mixed, change: { placement: { mode: 1, decode: { ...refOf(mixed), epoch: 0n } } } },
      { reason: "stale_epoch" },
    ],
  ];
  for (const [options, expected] of cases) {
    const { error } = await generate(options).result;
    expect(error).toMatchObject({ reason: "invalid_request", ...expected });
  }
  await expectQuiet(mixed, decode);
});

test("layouts that differ are refused before anything is computed", async () => {
  const prefill = await start("prefill", "prefill", { modelRevision: "other" });
  const decode = await start("decode", "decode");
  expect((await generate({ prefill, decode }).result).error).toMatchObject({ reason: "layout_mismatch" });
  await expectQuiet(prefill, decode);
});

test("many at once, of all kinds, through a small pool: all come out right", async () => {
  const prefill = await start("prefill", "prefill", { blockCount: 24, admissionWaitMs: 10_000 });
  const mixed = await start("mixed", "mixed", { blockCount: 24, admissionWaitMs: 10_000 });
  const requests = Array.from({ length: 60 }, (_, index) => ({
    decode: mixed,
    ...(index % 2 ? { prefill } : {}),
    promptTokenCount: 1 + ((index * 37) % 120),
    maxTokens: 1 + ((index * 11) % 40),
    seed: BigInt(index),
  }));
  const results = await Promise.all(requests.map((request) => generate(request).result));
  for (const [index, { tokenIds, error }] of results.entries()) {
    const { promptTokenCount, maxTokens, seed } = requests[index] ?? { promptTokenCount: 0, maxTokens: 0, seed: 0n };
    expect(error).toBeUndefined();
    expect(tokenIds).toEqual(expectedTokens(promptTokenCount, maxTokens, seed));
  }
  await expectQuiet(prefill, mixed);
});

test("without room the answer is overloaded, with a hint when to come again", async () => {
  const mixed = await start("mixed", "mixed", { blockCount: 4, admissionWaitMs: 50 });
  const gate = new Gate(5);
  mixed.faults.beforeStep = gate.pass;
  const first = generate({ decode: mixed, promptTokenCount: 30, maxTokens: 30 });
  await gate.reached();
  const { error, accepted } = await generate({ decode: mixed, promptTokenCount: 30, maxTokens: 30 }).result;
  expect(error).toMatchObject({ reason: "overloaded" });
  expect(error?.retryAfterMs).toBeGreaterThan(0);
  expect(accepted).toBe(false);
  gate.open();
  expect((await first.result).error).toBeUndefined();
  await expectQuiet(mixed);
});

test("a full queue refuses at once", async () => {
  const mixed = await start("mixed", "mixed", { blockCount: 4, admissionWaitMs: 30_000, waitingCountMax: 1 });
  const gate = new Gate(5);
  mixed.faults.beforeStep = gate.pass;
  const first = generate({ decode: mixed, promptTokenCount: 30, maxTokens: 30 });
  await gate.reached();
  const second = generate({ decode: mixed, promptTokenCount: 30, maxTokens: 30 });
  await eventually(() => expect(mixed.worker.supervisor.current?.isQueueFull).toBe(true));
  const third = await generate({ decode: mixed, promptTokenCount: 30, maxTokens: 30 }).result;
  expect(third.error).toMatchObject({ reason: "overloaded", retryAfterMs: 1000 });
  gate.open();
  for (const { result } of [first, second]) expect((await result).error).toBeUndefined();
  await expectQuiet(mixed);
});

test("one mixed worker can be both sides of a hand-over", async () => {
  const mixed = await start("mixed", "mixed");
  const { tokenIds, finished } = await generate({ prefill: mixed, decode: mixed }).result;
  expect(tokenIds).toEqual(expectedTokens(40, 12));
  expect(finished?.kvBytesMoved).toBe(2560n);
  await expectQuiet(mixed);
});

test("a worker that drains lets running requests finish until its deadline, takes no more, and fails the rest when it stops", async () => {
  const mixed = await start("mixed", "mixed");
  mixed.faults.stepDelayMs = 10;
  const quick = generate({ decode: mixed, maxTokens: 10 });
  const slow = generate({ decode: mixed, maxTokens: 400 });
  await Promise.all([quick.firstToken, slow.firstToken]);
  const stopped = mixed.worker.drain(3_000).then(() => mixed.worker.stop());
  expect(mixed.worker.isDraining).toBe(true);
  expect((await generate({ decode: mixed }).result).error).toMatchObject({ reason: "unavailable" });
  expect((await quick.result).error).toBeUndefined();
  const gate = new Gate();
  mixed.faults.beforeStep = gate.pass;
  expect((await slow.result).error).toMatchObject({ reason: "unavailable" });
  gate.open();
  await stopped;
});
