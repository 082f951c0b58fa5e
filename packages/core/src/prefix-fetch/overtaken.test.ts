import fc from "fast-check";
import { expect, test } from "vitest";
import { overtaken } from "./overtaken.ts";

const at = (bytesPerMs: number, usualBytesPerMs = bytesPerMs) => ({ bytesPerMs, usualBytesPerMs });
const chunks = (...remaining: readonly number[]) =>
  remaining.map((remainingBytes) => ({ remainingBytes, computeMs: 100 }));

test("a chunk is taken back when computing it is sooner than its bytes, and as long as it is in time it is not", () => {
  expect(overtaken(chunks(1_000), at(20), undefined)).toBe(0);
  expect(overtaken(chunks(1_000), at(5), undefined)).toBe(1);
  expect(overtaken(chunks(1_000), at(5), 250)).toBe(0);
  expect(overtaken(chunks(1_000), at(5), 150)).toBe(1);
});

test("computing and the rest of the link end together", () => {
  // 100 ms to compute the first, 100 ms for the link to bring the second alone.
  expect(overtaken(chunks(1_000, 1_000), at(10), 150)).toBe(1);
  expect(overtaken(chunks(1_000, 1_000), at(1), 150)).toBe(2);
  expect(overtaken([], at(1), 0)).toBe(0);
});

test("what only waiting can still save is waited for as long as the usual speed would do", () => {
  expect(overtaken(chunks(1_000), at(5), 90)).toBe(1);
  expect(overtaken(chunks(1_000), at(5, 20), 90)).toBe(0);
  expect(overtaken(chunks(1_000), at(5, 20), 40)).toBe(1);
});

test("no other number of chunks is there sooner", () => {
  const drawn = fc.array(
    fc.record({
      remainingBytes: fc.integer({ min: 1, max: 10_000 }),
      computeMs: fc.integer({ min: 1, max: 200 }),
    }),
    { minLength: 1, maxLength: 5 },
  );
  fc.assert(
    fc.property(drawn, fc.integer({ min: 1, max: 200 }), (under, speed) => {
      const msOf = (count: number) => {
        const computed = under.slice(0, count).reduce((sum, { computeMs }) => sum + computeMs, 0);
        return Math.max(
          computed,
          under.slice(count).reduce((sum, { remainingBytes }) => sum + remainingBytes, 0) / speed,
        );
      };
      const all = Array.from({ length: under.length + 1 }, (_, count) => msOf(count));
      expect(msOf(overtaken(under, at(speed), undefined))).toBeCloseTo(Math.min(...all), 6);
    }),
  );
});
