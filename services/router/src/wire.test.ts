import { create } from "@bufbuild/protobuf";
import { PlaceStartSchema, WorkerLoadSchema } from "@kvasir/proto";
import { expect, test } from "vitest";
import { loadFromWire, requestFromStart } from "./wire.ts";

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
