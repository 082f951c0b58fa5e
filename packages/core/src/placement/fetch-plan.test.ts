import { expect, test } from "vitest";
import { bestFetch, type HeldPrefix } from "./fetch-plan.ts";
import { PREDICTION_DEFAULTS } from "./predict.ts";

const OPTIONS = { ...PREDICTION_DEFAULTS, kvBytesPerSecond: 1e6, storeDiskBytesPerSecond: 1e5, handoverMs: 2 };
const held = (workerId: string, tokenEnd: number, rest: Partial<HeldPrefix> = {}): HeldPrefix => ({
  ...{ holder: { facts: { workerId, address: "a:1" }, epoch: 1 }, tokenEnd, diskTokenCount: 0 },
  ...rest,
});
/** 1,000 bytes a token: one takes 1 ms on the wire, and as given to compute. */
const choose = (candidates: readonly HeldPrefix[], tokensPerSecond: number, cachedTokenCount = 0) => {
  const fetch = bestFetch(candidates, { cachedTokenCount, tokensPerSecond, kvBytesPerToken: 1_000 }, OPTIONS);
  return fetch && [fetch.plan.holder.facts.workerId, fetch.fetchMs];
};

test("who saves most is asked: the longer prefix, unless a disk is slower than computing", () => {
  const store = held("store", 200, { isStore: true });
  expect(choose([held("worker", 100), store], 100)).toEqual(["store", 202]);
  expect(choose([held("worker", 100), { ...store, diskTokenCount: 200 }], 100)).toEqual(["worker", 102]);
  expect(choose([held("worker", 200), store], 100), "the first of equals").toEqual(["worker", 202]);
});

test("nobody is asked for what is there, or is computed as quickly", () => {
  expect(choose([held("worker", 100)], 100, 100)).toBeUndefined();
  expect(choose([held("worker", 100)], 1_000)).toBeUndefined();
});
