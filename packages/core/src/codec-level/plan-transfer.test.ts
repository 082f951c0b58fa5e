import fc from "fast-check";
import { expect, test } from "vitest";
import { type CodecLevelFacts, fetchMs, KV_ACCURACIES, planTransfer, type TransferQuestion } from "./index.ts";

const level = (name: string, accuracy: CodecLevelFacts["accuracy"], ratio: number, speed: number): CodecLevelFacts => ({
  ...{ name, accuracy, ratio },
  encodeBytesPerMs: speed,
  decodeBytesPerMs: speed,
});
const RAW = level("raw", "exact", 1, Number.POSITIVE_INFINITY);
const LOSSLESS = level("lossless", "exact", 1.5, 1_000);
const NEAR = level("near", "near", 4, 1_000);
const FAST = level("fast", "fast", 10, 250);
const LEVELS = [RAW, LOSSLESS, NEAR, FAST];

/** Ten chunks of 1,000 bytes that take 5 ms each to compute. */
const question = (changes: Partial<TransferQuestion> & { readonly bytesPerMs?: number }): TransferQuestion => ({
  chunks: Array.from({ length: 10 }, () => ({ rawBytes: 1_000, computeMs: 5 })),
  levels: LEVELS,
  link: { bytesPerMs: changes.bytesPerMs ?? 100, activeStreams: 1, latencyMs: 0 },
  budget: "exact",
  deadlineMs: undefined,
  mayCompute: false,
  ...changes,
});
const names = (asked: TransferQuestion) => planTransfer(asked).levels.map(({ name }) => name);

test("encoding, sending and decoding overlap", () => {
  const slow = { ...level("slow", "exact", 2, 500), decodeBytesPerMs: 1_000 };
  const { chunks, link } = question({});
  // Encoded after 2 ms, each sent in 5, decoded 1 ms after the last was sent.
  expect(
    fetchMs(
      chunks,
      chunks.map(() => slow),
      link,
    ),
  ).toBe(2 + 10 * 5 + 1);
});

test("raw on a fast link, lossless on a slow one, and errors only where they are allowed and needed", () => {
  expect(new Set(names(question({ bytesPerMs: 2_000 })))).toEqual(new Set(["raw"]));
  expect(new Set(names(question({ bytesPerMs: 100 })))).toEqual(new Set(["lossless"]));
  expect(new Set(names(question({ deadlineMs: 30 })))).toEqual(new Set(["lossless"]));
  expect(new Set(names(question({ budget: "near" })))).toEqual(new Set(["lossless"]));
  expect(new Set(names(question({ budget: "fast", deadlineMs: 80 })))).toEqual(new Set(["lossless"]));
});

test("a coarser level is taken for the end of the text only, as far as the deadline asks", () => {
  const plan = planTransfer(question({ budget: "near", deadlineMs: 50 }));
  expect(plan.meetsDeadline).toBe(true);
  // 10 near chunks take 27 ms, and each lossless one 4.2 ms more.
  expect(plan.levels.map(({ name }) => name)).toEqual([...Array(5).fill("lossless"), ...Array(5).fill("near")]);
});

test("the front is computed while the rest travels, and no more of it than the deadline asks", () => {
  const soonest = planTransfer(question({ mayCompute: true }));
  expect([soonest.computedCount, soonest.predictedMs]).toEqual([6, 30]);
  expect(planTransfer(question({ mayCompute: true, deadlineMs: 50 })).computedCount).toBe(3);
  expect(planTransfer(question({ mayCompute: true, deadlineMs: 500 })).computedCount).toBe(0);
  expect(planTransfer(question({ mayCompute: true, bytesPerMs: 0.01 })).computedCount).toBe(10);
});

const questions = fc.record({
  chunks: fc.array(
    fc.record({
      rawBytes: fc.integer({ min: 1, max: 10_000 }),
      computeMs: fc.double({ min: 0.01, max: 50, noNaN: true }),
    }),
    {
      minLength: 1,
      maxLength: 12,
    },
  ),
  link: fc.record({
    bytesPerMs: fc.double({ min: 0.1, max: 10_000, noNaN: true }),
    activeStreams: fc.integer({ min: 1, max: 5 }),
    latencyMs: fc.double({ min: 0, max: 5, noNaN: true }),
  }),
  budget: fc.constantFrom(...KV_ACCURACIES),
  deadlineMs: fc.option(fc.double({ min: 0.1, max: 500, noNaN: true }), { nil: undefined }),
  mayCompute: fc.boolean(),
  levels: fc.constant(LEVELS),
});

test("no plan is less exact than its budget, says another time than it takes, or misses what one of its kind meets", () => {
  fc.assert(
    fc.property(questions, (asked) => {
      const plan = planTransfer(asked);
      const { chunks, link, budget, deadlineMs } = asked;
      expect(plan.computedCount + plan.levels.length).toBe(chunks.length);
      expect(asked.mayCompute || plan.computedCount === 0).toBe(true);
      const worst = KV_ACCURACIES.indexOf(budget);
      expect(plan.levels.every(({ accuracy }) => KV_ACCURACIES.indexOf(accuracy) <= worst)).toBe(true);
      const allows = LEVELS.filter(({ accuracy }) => KV_ACCURACIES.indexOf(accuracy) <= worst);
      const timeOf = (count: number, levels: readonly CodecLevelFacts[]) => {
        const rest = chunks.slice(count);
        const fetching = rest.length === 0 ? 0 : fetchMs(rest, levels, link);
        return Math.max(
          chunks.slice(0, count).reduce((sum, chunk) => sum + chunk.computeMs, 0),
          fetching,
        );
      };
      expect(plan.predictedMs).toBeCloseTo(timeOf(plan.computedCount, plan.levels), 6);
      const counts = asked.mayCompute ? Array.from({ length: chunks.length + 1 }, (_, count) => count) : [0];
      const others = counts.flatMap((count) =>
        allows.map((one) => ({
          one,
          ms: timeOf(
            count,
            chunks.slice(count).map(() => one),
          ),
        })),
      );
      const exactMs = Math.min(...others.filter(({ one }) => one.accuracy === "exact").map(({ ms }) => ms));
      const leastMs = Math.min(...others.map(({ ms }) => ms));
      if (deadlineMs === undefined) {
        expect(plan.levels.every(({ accuracy }) => accuracy === "exact")).toBe(true);
        expect(plan.predictedMs).toBeCloseTo(exactMs, 6);
      } else {
        expect(plan.meetsDeadline).toBe(leastMs <= deadlineMs);
        if (exactMs <= deadlineMs) expect(plan.levels.every(({ accuracy }) => accuracy === "exact")).toBe(true);
        if (leastMs > deadlineMs) expect(plan.predictedMs).toBeCloseTo(leastMs, 6);
      }
    }),
    { numRuns: 2_000 },
  );
});
