import { expect, test } from "vitest";
import { objectivesOf } from "./objectives.ts";

test("each target comes from the body, else from headers in either spelling, else from the first default that has one", () => {
  const tenant = { ttft_ms: 900 };
  const gateway = { ttft_ms: 5_000, tpot_ms: 90, on_miss: "best_effort" as const };
  const headers = { "x-slo-ttft-ms": "500", "x-llm-d-slo-tpot-ms": "25.5" };
  expect(objectivesOf({}, undefined, [])).toEqual({ ttftMs: 0, tpotMs: 0, mayBeLate: false });
  expect(objectivesOf({}, null, [tenant, gateway])).toEqual({ ttftMs: 900, tpotMs: 90, mayBeLate: true });
  expect(objectivesOf(headers, undefined, [tenant, gateway])).toEqual({ ttftMs: 500, tpotMs: 25.5, mayBeLate: true });
  expect(objectivesOf(headers, { ttft_ms: 100, on_miss: "reject" }, [tenant, gateway])).toEqual({
    ttftMs: 100,
    tpotMs: 25.5,
    mayBeLate: false,
  });
  expect(objectivesOf({ "x-slo-on-miss": "best_effort" }, undefined, []).mayBeLate).toBe(true);
});

test.each(["soon", "0", "-1", "1e99", ""])("a header that says %j is refused by its name", (text) => {
  expect(() => objectivesOf({ "x-slo-ttft-ms": text }, undefined, [])).toThrow(/header x-slo-ttft-ms is/);
});

test("a header that says something else to do is refused", () => {
  expect(() => objectivesOf({ "x-llm-d-slo-on-miss": "wait" }, undefined, [])).toThrow(
    'header x-llm-d-slo-on-miss is "wait"; use reject or best_effort',
  );
});
