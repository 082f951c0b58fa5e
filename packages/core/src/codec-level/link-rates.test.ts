import fc from "fast-check";
import { expect, test } from "vitest";
import { type CodecLevelFacts, fetchMs, isWithin, KV_ACCURACIES, linkRates } from "./index.ts";

const level = (accuracy: CodecLevelFacts["accuracy"], ratio: number, speed: number): CodecLevelFacts => ({
  ...{ name: accuracy, accuracy, ratio },
  encodeBytesPerMs: speed,
  decodeBytesPerMs: speed,
});
const RAW = level("exact", 1, Number.POSITIVE_INFINITY);
const LEVELS = [RAW, level("exact", 1.5, 400), level("near", 5, 300), level("fast", 9, 200)];

test("a slow link brings as much more as KV is smaller; of a fast one the coders are the narrow place, and raw KV comes soonest", () => {
  expect(linkRates(LEVELS, 10)).toEqual({ exact: 15, near: 50, fast: 90 });
  expect(linkRates(LEVELS, 50)).toEqual({ exact: 75, near: 250, fast: 250 });
  expect(linkRates(LEVELS, 1_000)).toEqual({ exact: 1_000, near: 1_000, fast: 1_000 });
});

test("a rate is that of a long transfer at the best level, is never lower where more may be lost, and grows with the link", () => {
  const coded = fc.record({
    accuracy: fc.constantFrom(...KV_ACCURACIES),
    ratio: fc.double({ min: 1, max: 20, noNaN: true }),
    speed: fc.double({ min: 1, max: 1e6, noNaN: true }),
  });
  const speed = fc.double({ min: 0.1, max: 1e6, noNaN: true });
  fc.assert(
    fc.property(fc.array(coded, { maxLength: 6 }), speed, speed, (some, a, b) => {
      const levels = [RAW, ...some.map(({ accuracy, ratio, speed }) => level(accuracy, ratio, speed))];
      const [slow, fast] = [linkRates(levels, Math.min(a, b)), linkRates(levels, Math.max(a, b))];
      expect(slow.exact).toBeLessThanOrEqual(slow.near);
      expect(slow.near).toBeLessThanOrEqual(slow.fast);
      const chunks = Array.from({ length: 1_000 }, () => ({ rawBytes: 1e4, computeMs: 0 }));
      const link = { bytesPerMs: Math.min(a, b), lowBytesPerMs: 1, activeStreams: 1, latencyMs: 0, queuedBytes: 0 };
      for (const budget of KV_ACCURACIES) {
        expect(slow[budget]).toBeLessThanOrEqual(fast[budget]);
        const soonest = Math.min(
          ...levels
            .filter(({ accuracy }) => isWithin(accuracy, budget))
            .map((one) =>
              fetchMs(
                chunks,
                chunks.map(() => one),
                link,
              ),
            ),
        );
        // The first chunk is encoded and the last one decoded beside nothing.
        expect(1e7 / slow[budget] / soonest).toBeGreaterThan(0.99);
        expect(1e7 / slow[budget] / soonest).toBeLessThan(1.000_001);
      }
    }),
  );
});
