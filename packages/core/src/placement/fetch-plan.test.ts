import { expect, test } from "vitest";
import { type HeldPrefix, isWorthFetching, LongestHoldings } from "./fetch-plan.ts";
import { PREDICTION_DEFAULTS } from "./predict.ts";
import { attached } from "./testing/world.ts";

const OPTIONS = { ...PREDICTION_DEFAULTS, kvBytesPerSecond: 1e6, storeDiskBytesPerSecond: 1e5, handoverMs: 2 };
const store: HeldPrefix = {
  ...{ holder: { facts: { workerId: "store", address: "a:1" }, epoch: 1 }, tokenEnd: 200, diskTokenCount: 0 },
  isStore: true,
};

/** 1,000 bytes a token: one takes 1 ms on the wire, and as given to compute. Who is asked, and the time. */
function choose(workerTokens: number, stored: HeldPrefix | undefined, tokensPerSecond: number, cachedTokenCount = 0) {
  const own = { worker: attached("m1"), cachedTokenCount };
  const holdings = new LongestHoldings([own, { worker: attached("m2"), cachedTokenCount: workerTokens }]);
  const msBeyond = (tokenCount: number) => ((300 - tokenCount) / tokensPerSecond) * 1_000;
  const plan = holdings.planFor(own, stored, msBeyond, OPTIONS);
  return plan && isWorthFetching(plan) ? [plan.holder.facts.workerId, plan.fetchMs] : undefined;
}

test("who saves most is asked: the longer prefix, unless a disk is slower than computing", () => {
  expect(choose(100, store, 100)).toEqual(["store", 202]);
  expect(choose(100, { ...store, diskTokenCount: 200 }, 100)).toEqual(["m2", 102]);
  expect(choose(200, store, 100), "the first of equals").toEqual(["m2", 202]);
});

test("nobody is asked for what is there, or is computed as quickly", () => {
  expect(choose(100, undefined, 100, 100)).toBeUndefined();
  expect(choose(100, undefined, 1_000)).toBeUndefined();
});

test("blocks of another size or of other bits are not looked at", () => {
  const own = { worker: attached("m1"), cachedTokenCount: 0 };
  const others = [{ blockSize: 16 }, { exactFingerprint: "bb".repeat(16) }].map((facts, index) => ({
    worker: attached(`m${index + 2}`, {}, facts),
    cachedTokenCount: 128,
  }));
  expect(new LongestHoldings(others).planFor(own, undefined, () => 0, OPTIONS)).toBeUndefined();
});
