import { expect, test } from "vitest";
import { aggregatedTtft, PREDICTION_DEFAULTS, predictTbtMs, reckonLoad, splitTtft } from "./predict.ts";
import { attached } from "./testing/world.ts";

const reserved = (blockCount: number, promptTokenCount = 0, sequenceCount = 0) => ({
  blockCount,
  promptTokenCount,
  promptCount: promptTokenCount > 0 ? 1 : 0,
  sequenceCount,
});

test.each([
  // [used by the report, promised at the report, promised now] → free of 11
  [[0, 0, 0], 11, "idle"],
  [[0, 4, 4], 7, "the worker has not yet heard of what was promised"],
  [[4, 4, 4], 7, "both speak of the same requests: nothing counts twice"],
  [[6, 4, 4], 5, "two blocks are someone else's"],
  [[6, 4, 7], 2, "someone else's two, and our seven"],
  [[6, 4, 0], 9, "ours ended since; someone else's two stay"],
  [[11, 0, 11], 0, "never below nothing"],
] as [[number, number, number], number, string][])(
  "%j leaves %i free: %s",
  ([used, promisedThen, promisedNow], free) => {
    const worker = { ...attached("d0", { freeBlockCount: 11 - used }), reservedAtReport: reserved(promisedThen) };
    expect(reckonLoad(worker, reserved(promisedNow)).freeBlockCount).toBe(free);
  },
);

test("queued prompts and sequences follow the same rule", () => {
  const worker = {
    ...attached("p0", { queuedPromptTokenCount: 100, runningCount: 2, waitingCount: 1 }),
    reservedAtReport: reserved(0, 60, 3),
  };
  expect(reckonLoad(worker, reserved(0, 160, 4))).toMatchObject({ queuedPromptTokenCount: 200, sequenceCount: 4 });
});

test("TTFT is the queue, the prompt, and what is not hidden behind them", () => {
  expect(aggregatedTtft(500, 250, 1_000, 10)).toEqual({ queueMs: 500, computeMs: 250, tailMs: 10 });
  const options = { ...PREDICTION_DEFAULTS, handoverMs: 2 };
  // 250 ms of KV on its way are hidden behind 250 ms of compute, not behind 125 ms.
  expect(splitTtft(0, 250, 1_000, 250, options)).toEqual({
    queueMs: 0,
    computeMs: 250,
    tailMs: 2,
  });
  expect(splitTtft(0, 250, 2_000, 250, options)).toEqual({
    queueMs: 0,
    computeMs: 125,
    tailMs: 127,
  });
});

test("TBT grows with the batch beyond the measured one, by half", () => {
  expect(predictTbtMs(10, 4, 3, PREDICTION_DEFAULTS)).toBe(10);
  expect(predictTbtMs(10, 4, 7, PREDICTION_DEFAULTS)).toBe(15);
  expect(predictTbtMs(10, 0, 0, PREDICTION_DEFAULTS)).toBe(10);
});
