import { prefillMs } from "@kvasir/core";
import { expect, test } from "vitest";
import { FIRST_TOKEN_MESSAGES } from "./measured-profile.ts";
import { simulate } from "./simulation.ts";
import { recordsOf, summarize } from "./summary.ts";
import { a100, chat, poissonTrace } from "./testing/worlds.ts";

const OBJECTIVE = { ttftMs: 1_000, tbtMs: 100 };

test("one seed gives one result, byte for byte; another one another", () => {
  const run = (seed: number) =>
    recordsOf(
      simulate(
        a100({ prefill: 2, decode: 2, mixed: 1 }, { faults: [{ atMs: 8_000, workerIndex: 1, restartAfterMs: 5_000 }] }),
        poissonTrace(4, 80, seed, chat),
      ),
    );
  expect(run(1)).toBe(run(1));
  expect(run(1)).not.toBe(run(2));
});

test("an idle pair's TTFT is the prompt's computation and the messages; the hand-over does not delay the first token", () => {
  const trace = poissonTrace(0.01, 1, 1, () => ({ promptTokenCount: 512, outputTokenCount: 10 }));
  const [request] = simulate(a100({ prefill: 1, decode: 1 }), trace).requests;
  // 18.1 + 0.1019·512 + 7.12e-6·512² ms on the device.
  expect(request?.ttftMs).toBeGreaterThan(72.1);
  expect(request?.ttftMs).toBeLessThan(72.1 + 8 * 0.5);
  expect(request?.tokenCount).toBe(10);
  // The second token waits for the rest of the KV: 400 MB at 12.5 GB/s.
  expect(request?.gapMaxNanos ?? 0).toBeGreaterThan(20e6);
});

test("a lone request's first token waits for its prompt's step and as many messages as a measured overhead is divided by", () => {
  const trace = poissonTrace(0.01, 1, 1, () => ({ promptTokenCount: 100, outputTokenCount: 5 }));
  const times = { rpcMs: 7, stepOverheadMs: 3 };
  const { believed } = a100({}).profile;
  const stepMs = prefillMs(believed, 100, 0, 512) + times.stepOverheadMs;
  for (const [counts, messages] of [
    [{ mixed: 1 }, FIRST_TOKEN_MESSAGES.aggregated],
    [{ prefill: 1, decode: 1 }, FIRST_TOKEN_MESSAGES.split],
  ] as const) {
    const [request] = simulate(a100(counts, times), trace).requests;
    expect(request?.ttftMs).toBeCloseTo(stepMs + messages * times.rpcMs, 3);
  }
});

test("workers that die lose no request and no block", () => {
  const faults = [0, 1, 2, 3].map((workerIndex) => ({
    atMs: 5_000 + 7_000 * workerIndex,
    workerIndex,
    restartAfterMs: 3_000,
  }));
  const result = simulate(a100({ prefill: 2, decode: 2 }, { faults }), poissonTrace(3, 150, 3, chat));
  expect(result.requests.map(({ outcome }) => outcome)).toEqual(result.requests.map(() => "finished"));
  expect(result.requests.every(({ tokenCount, trace }) => tokenCount === trace.outputTokenCount)).toBe(true);
  expect(result.requests.some(({ attemptCount }) => attemptCount > 1)).toBe(true);
  for (const { scheduler } of result.workers) scheduler.checkInvariants();
});

test("a straggler is given less than the others", () => {
  const quirks = [{ workerIndex: 0, slowdown: 4 }];
  const { workers } = simulate(a100({ mixed: 4 }, { quirks }), poissonTrace(6, 400, 4, chat));
  const [slow = 0, ...others] = workers.map(({ use }) => use.decodeTokenCount);
  expect(slow).toBeLessThan(0.6 * Math.min(...others));
});

test("a worker that says it is idle and infinitely fast is not believed for long: others work too, and nobody is late", () => {
  const distort = <T extends object>(load: T) => ({
    ...load,
    freeBlockCount: 1_033,
    runningCount: 0,
    queuedPromptTokenCount: 0,
    contextTokenCount: 0,
    stepCost: { fixedMs: 0.1, promptTokenMs: 0, attentionMs: 0, decodeMs: 0, contextTokenMs: 0 },
  });
  const result = simulate(
    a100({ mixed: 4 }, { quirks: [{ workerIndex: 0, distort }], objectives: { ttftMs: 5_000, tbtMs: 100 } }),
    poissonTrace(6, 400, 4, chat),
  );
  const onLiar = result.requests.filter(
    ({ decision }) => decision?.candidates[0].decode.facts.workerId === "m0000",
  ).length;
  expect(onLiar).toBeLessThan(280);
  expect(summarize(result, { ttftMs: 5_000, tbtMs: 100 }).attainment).toBeGreaterThan(0.99);
});

test("a burst of 67 requests in one second is spread, and all are served", () => {
  const trace = poissonTrace(67, 67, 6, chat);
  const result = simulate(a100({ mixed: 16 }), trace);
  expect(summarize(result, OBJECTIVE).finishedCount).toBe(67);
  const counts = result.workers.map(({ use }) => use.promptTokenCount);
  expect(Math.max(...counts) / (counts.reduce((sum, count) => sum + count, 0) / 16)).toBeLessThan(1.6);
});
