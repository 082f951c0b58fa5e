import { expect, test } from "vitest";
import { NO_OBJECTIVES, objectivesOf } from "./objectives.ts";

test("targets come from the body, else from headers in either spelling, else from the gateway's default", () => {
  const fallback = { ttftMs: 900, tpotMs: 90, mayBeLate: true };
  const headers = { "x-slo-ttft-ms": "500", "x-llm-d-slo-tpot-ms": "25.5" };
  expect(objectivesOf({}, undefined, NO_OBJECTIVES)).toEqual(NO_OBJECTIVES);
  expect(objectivesOf({}, null, fallback)).toEqual(fallback);
  expect(objectivesOf(headers, undefined, fallback)).toEqual({ ttftMs: 500, tpotMs: 25.5, mayBeLate: true });
  expect(objectivesOf(headers, { ttft_ms: 100, may_be_late: false }, fallback)).toEqual({
    ttftMs: 100,
    tpotMs: 25.5,
    mayBeLate: false,
  });
});

test.each(["soon", "0", "-1", "1e99", ""])("a header that says %j is refused by its name", (text) => {
  expect(() => objectivesOf({ "x-slo-ttft-ms": text }, undefined, NO_OBJECTIVES)).toThrow(/header x-slo-ttft-ms is/);
});
