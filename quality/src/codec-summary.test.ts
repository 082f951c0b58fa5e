import { expect, test } from "vitest";
import { codecPage } from "./codec-page.ts";
import { codecPlot } from "./codec-plot.ts";
import { type CodecLine, ratioWithin, summarizeCodec } from "./codec-summary.ts";

const line = (method: string, id: string, coded: number, kl: readonly number[]): CodecLine => ({
  ...{
    id,
    method,
    raw_bytes: 1_600,
    coded_bytes: coded,
    kl,
    agreements: kl.length,
    identical: kl.every((one) => one === 0),
  },
});

test("ratios are of all bytes, divergences of all places, and the error of the mean is between questions", () => {
  const [summary] = summarizeCodec([line("near", "a", 100, [0.01, 0.03]), line("near", "b", 300, [0.02, 0.02, 0])]);
  expect(summary).toMatchObject({
    method: "near",
    ratio: 8,
    bitsPerValue: 2,
    places: 5,
    klP99: 0.03,
    agreement: 1,
    identical: 0,
  });
  expect(summary?.klMean).toBeCloseTo(0.016);
  // Question a is 0.008 above the mean of its two places, b as much below that of its three.
  expect(summary?.klStandardError).toBeCloseTo((Math.SQRT2 * 0.008) / 5);
});

test("what a family reaches within a divergence is what was measured there or below", () => {
  const family = summarizeCodec([line("a", "1", 400, [0.001]), line("b", "1", 100, [0.1])]);
  expect(ratioWithin(family, 0.01)).toBe(4);
  expect(ratioWithin(family, 0.1)).toBe(16);
  expect(ratioWithin(family, 0.0001)).toBeUndefined();
});

test("the page compares at equal divergence, and the plot has a point for each method", () => {
  const summaries = summarizeCodec([
    ...[line("raw", "1", 1_600, [0]), line("cachegen-0.5", "1", 400, [0.01])],
    ...[line("near", "1", 200, [0.005]), line("densest", "1", 100, [0.05])],
  ]);
  expect(codecPage({ model: "x" }, summaries)).toContain("| cachegen-0.5 | 0.0100 | 4.00× | 8.00× | 2.00 |");
  expect(codecPlot(summaries).match(/<circle/g)).toHaveLength(4);
  expect(codecPlot(summaries)).not.toContain("NaN");
});
