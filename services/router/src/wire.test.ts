import { create } from "@bufbuild/protobuf";
import type { Instant } from "@kvasir/core";
import { KvAccuracy, PlaceStartSchema, WorkerLoadSchema } from "@kvasir/proto";
import { expect, test } from "vitest";
import { linksFromWire, loadFromWire, requestFromStart } from "./wire.ts";

const start = (extra: object) =>
  create(PlaceStartSchema, { requestId: "r", model: "m", promptTokenCount: 9, maxTokens: 3, ...extra });

test("targets become objectives; what is 0 or no time is none", () => {
  expect(requestFromStart(start({})).objectives).toBeUndefined();
  expect(requestFromStart(start({ ttftTargetMs: 500, tbtTargetMs: Number.NaN })).objectives).toEqual({
    ttftMs: 500,
    mayBeLate: false,
  });
  expect(requestFromStart(start({ tbtTargetMs: 40, ttftTargetMs: -1, mayBeLate: true })).objectives).toEqual({
    tbtMs: 40,
    mayBeLate: true,
  });
});

test("a step cost is taken whole, or not at all when a number in it cannot be", () => {
  const cost = {
    fixedMs: 6,
    promptStepMs: 3,
    promptTokenMs: 0.03,
    attentionMs: 0,
    decodeMs: 0.02,
    contextTokenMs: 0.0001,
  };
  expect(loadFromWire(create(WorkerLoadSchema, { stepCost: cost })).stepCost).toEqual(cost);
  for (const wrong of [-1, Number.NaN, Number.POSITIVE_INFINITY]) {
    expect(loadFromWire(create(WorkerLoadSchema, { stepCost: { ...cost, decodeMs: wrong } })).stepCost).toBeUndefined();
  }
  expect(loadFromWire(create(WorkerLoadSchema, {})).stepCost).toBeUndefined();
});

test("who says nothing of accuracy wants exact KV", () => {
  const accuracies = [KvAccuracy.UNSPECIFIED, KvAccuracy.EXACT, KvAccuracy.NEAR, KvAccuracy.FAST, 99 as KvAccuracy];
  const asked = accuracies.map((kvAccuracy) => requestFromStart(start({ kvAccuracy })).kvAccuracy);
  expect(asked).toEqual(["exact", "exact", "near", "fast", "exact"]);
});

test("measured links are taken with their age, those that cannot be are not, and who allows more loss waits no longer", () => {
  const links = (...given: readonly object[]) => {
    return linksFromWire(create(WorkerLoadSchema, { links: [...given] }), 5_000_000_000 as Instant);
  };
  const link = {
    source: "a:1",
    exactBytesPerSecond: 2e6,
    nearBytesPerSecond: 4e6,
    fastBytesPerSecond: 8e6,
    ageMs: 4_000,
  };
  const rates = { exact: 2_000, near: 4_000, fast: 8_000 };
  expect(links(link)).toEqual([{ source: "a:1", measuredAt: 1_000_000_000, rates }]);
  expect(links({ ...link, nearBytesPerSecond: 0, fastBytesPerSecond: Number.NaN })).toMatchObject([
    { rates: { exact: 2_000, near: 2_000, fast: 2_000 } },
  ]);
  for (const wrong of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
    expect(links({ ...link, exactBytesPerSecond: wrong }, link)).toHaveLength(1);
  }
  expect(links({ ...link, source: "" }, { ...link, source: "a".repeat(257) })).toEqual([]);
  expect(links(...Array.from({ length: 100 }, () => link))).toHaveLength(32);
});
