import { expect, test } from "vitest";
import type { ErrorReason } from "../kvasir-error.ts";
import { type Instant, nanosFromMs } from "../time.ts";
import { Attempts } from "./attempts.ts";
import { RequestProgress } from "./request-progress.ts";

const at = (ms: number) => nanosFromMs(ms) as number as Instant;
const options = { fruitlessMax: 3, placeWithin: nanosFromMs(10_000) };
const lost = (decodeWorkerId: string, newTokenCount: number, reason: ErrorReason = "unavailable", workerId = "") => ({
  decodeWorkerId,
  newTokenCount,
  error: { reason, workerId },
});

test("a request goes on while it moves, and gives up after three attempts in a row without a token", () => {
  const attempts = new Attempts(options);
  for (let round = 0; round < 20; round++) expect(attempts.failed(lost("d0", 5), at(round)).kind).toBe("place_again");
  expect(attempts.failed(lost("d1", 0), at(20)).kind).toBe("place_again");
  expect(attempts.failed(lost("d2", 0), at(21)).kind).toBe("give_up");
  expect(attempts.failedCount).toBe(22);
  expect(attempts.failedWorkerIds).toEqual(["d0", "d1"]);
});

test("the worker that is named is the one that failed, else the one that was asked; there is a time to be placed in", () => {
  const attempts = new Attempts(options);
  expect(attempts.failed(lost("d0", 1, "unavailable", "p0"), at(5))).toEqual({
    kind: "place_again",
    failedWorkerId: "p0",
    placeBy: at(10_005),
  });
  expect(attempts.failed(lost("d0", 1, "deadline_exceeded"), at(6))).toMatchObject({ failedWorkerId: "d0" });
});

test("what another worker would answer too is not tried elsewhere", () => {
  for (const reason of ["invalid_request", "cancelled", "internal"] as const) {
    expect(new Attempts(options).failed(lost("d0", 0, reason), at(0))).toEqual({ kind: "give_up" });
  }
});

test("progress tells what each client has, and which answers only lack the word of their end", () => {
  const progress = new RequestProgress(3, 2);
  expect(progress.soFar()).toEqual([]);
  progress.add(0, [7]);
  progress.add(2, [8, 9]);
  expect(progress.end(1)).toBe(true);
  expect(progress.end(1)).toBe(false);
  expect(progress.soFar()).toEqual([
    { index: 0, tokenIds: [7], ended: false },
    { index: 1, tokenIds: [], ended: true },
    { index: 2, tokenIds: [8, 9], ended: false },
  ]);
  expect([progress.tokenCount, progress.complete(), progress.isOver]).toEqual([3, [2], false]);
  progress.end(2);
  progress.end(0);
  expect([progress.complete(), progress.isOver]).toEqual([[], true]);
});
