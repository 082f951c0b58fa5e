import { expect, test } from "vitest";
import { ApproximateTokens } from "./approximate-tokens.ts";

test("what was lost on the way counts over several pulls; what was converted counts whole", () => {
  const lossy = new ApproximateTokens(100, "fast");
  lossy.sourceAsked();
  lossy.pullBegins(32);
  lossy.pulled(64, 20, false);
  lossy.sourceTold(0);
  lossy.pullBegins(64);
  lossy.pulled(100, 36, false);
  expect(lossy.count).toBe(56);
  const converted = new ApproximateTokens(100, "exact");
  converted.pullBegins(32);
  converted.pulled(64, 0, true);
  expect(converted.count).toBe(32);
});

test("what a source says of its KV counts as far as it was pulled", () => {
  const tokens = new ApproximateTokens(100, "fast");
  tokens.sourceAsked();
  tokens.pullBegins(64);
  tokens.pulled(100, 0, false);
  expect(tokens.count).toBe(0);
  tokens.sourceTold(90);
  expect(tokens.count).toBe(36);
});

test("KV of a source that is lost before it said how exact it is may be approximate where the request allows it", () => {
  for (const [accuracy, expected] of [
    ["exact", 0],
    ["near", 40],
  ] as const) {
    const tokens = new ApproximateTokens(100, accuracy);
    tokens.sourceAsked();
    tokens.pullBegins(0);
    tokens.pulled(40, 0, false);
    tokens.sourceLost(40);
    tokens.sourceAsked();
    tokens.pullBegins(32);
    tokens.sourceTold(0);
    tokens.pulled(100, 0, false);
    tokens.sourceLost(100);
    expect(tokens.count).toBe(expected);
  }
});
