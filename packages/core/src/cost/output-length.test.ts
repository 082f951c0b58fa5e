import { expect, test } from "vitest";
import { OUTPUT_LENGTH_DEFAULTS, OutputLengthPredictor } from "./index.ts";

/** 1, 2, … 1000 in an order that mixes them. */
const lengths = Array.from({ length: 4_000 }, (_, i) => 1 + ((i * 617) % 1_000));

test("seven answers in ten are not longer than predicted, before and after a change of what is asked", () => {
  const predictor = new OutputLengthPredictor();
  for (const factor of [1, 4, 0.25]) {
    let covered = 0;
    for (const [index, length] of lengths.entries()) {
      const tokens = length * factor;
      if (index >= 2_000 && tokens <= predictor.predict("a", 900, 100_000).quantileTokens) covered++;
      predictor.observe("a", 1_000, tokens);
    }
    expect(Math.abs(covered / 2_000 - 0.7)).toBeLessThan(0.03);
  }
});

test("tenants and prompt lengths do not mix, and nothing is predicted beyond what is allowed", () => {
  const predictor = new OutputLengthPredictor({ ...OUTPUT_LENGTH_DEFAULTS, priorTokenCount: 77 });
  for (let i = 0; i < 100; i++) predictor.observe("a", 100, 10);
  expect(predictor.predict("a", 90, 1_000).meanTokens).toBeCloseTo(10);
  expect(predictor.predict("a", 900, 1_000).meanTokens).toBe(77);
  expect(predictor.predict("b", 90, 1_000).meanTokens).toBe(77);
  expect(predictor.predict("b", 90, 5)).toEqual({ meanTokens: 5, quantileTokens: 5 });
});
