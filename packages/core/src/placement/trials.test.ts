import { expect, test } from "vitest";
import type { Candidate } from "./choose-placement.ts";
import { at } from "./testing/world.ts";
import { Trials } from "./trials.ts";

const candidate = (ttftMs: number, tbtMs: number, extra: Partial<Candidate> = {}): Candidate =>
  ({ ttftMs, tbtMs, ttft: { queueMs: 0, computeMs: ttftMs, tailMs: 0 }, sequenceCount: 0, ...extra }) as Candidate;
const TARGETS = { ttftMs: 100, tbtMs: 20 };

test("a late prediction is tried when nothing was placed for two seconds, once, and again two seconds later", () => {
  const trials = new Trials();
  const isDue = (ms: number) => trials.isDue("m", candidate(90, 30), TARGETS, 0, at(ms));
  expect([isDue(0), isDue(1_999), isDue(2_000)]).toEqual([false, false, true]);
  trials.placed("m", at(2_000));
  expect([isDue(2_001), isDue(3_999), isDue(4_000)]).toEqual([false, false, true]);
  expect(trials.isDue("another", candidate(90, 30), TARGETS, 0, at(4_000))).toBe(false);
});

test("nothing is tried that is hopeless, or beside work", () => {
  const trials = new Trials();
  trials.placed("m", at(0));
  const isDue = (tried: Candidate, waitedMs = 0) => trials.isDue("m", tried, TARGETS, waitedMs, at(10_000));
  expect(isDue(candidate(300, 60))).toBe(true);
  expect(isDue(candidate(301, 60))).toBe(false);
  expect(isDue(candidate(300, 61))).toBe(false);
  expect(isDue(candidate(290, 10), 11)).toBe(false);
  expect(isDue(candidate(90, 30, { sequenceCount: 1 }))).toBe(false);
  expect(isDue(candidate(90, 30, { ttft: { queueMs: 1, computeMs: 1, tailMs: 0 } }))).toBe(false);
});
