import fc from "fast-check";
import { expect, test } from "vitest";
import {
  type CodecLevelFacts,
  fetchMs,
  KV_ACCURACIES,
  planTransfer,
  type TransferPlan,
  type TransferQuestion,
} from "./index.ts";

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
const question = (changes: Partial<TransferQuestion & TransferQuestion["link"]>): TransferQuestion => ({
  chunks: Array.from({ length: 10 }, () => ({ rawBytes: 1_000, computeMs: 5 })),
  levels: LEVELS,
  link: {
    bytesPerMs: changes.bytesPerMs ?? 100,
    lowBytesPerMs: changes.lowBytesPerMs ?? changes.bytesPerMs ?? 100,
    ...{ activeStreams: 1, latencyMs: 0, queuedBytes: changes.queuedBytes ?? 0 },
  },
  budget: "exact",
  deadlineMs: undefined,
  mayCompute: false,
  computeBusyMs: 0,
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
  expect(new Set(names(question({ budget: "fast", deadlineMs: 100 })))).toEqual(new Set(["lossless"]));
});

test("a coarser level is taken for the end of the text only, as far as the deadline asks", () => {
  const plan = planTransfer(question({ budget: "near", deadlineMs: 72 }));
  expect(plan.meetsDeadline).toBe(true);
  // 30 % of the time is kept; 10 near chunks take 27 ms, and each lossless one 4.2 ms more.
  expect(plan.levels.map(({ name }) => name)).toEqual([...Array(5).fill("lossless"), ...Array(5).fill("near")]);
});

test("the front is computed while the rest travels, and no more of it than the deadline asks", () => {
  const soonest = planTransfer(question({ mayCompute: true }));
  expect([soonest.computedCount, soonest.predictedMs]).toEqual([6, 30]);
  expect(planTransfer(question({ mayCompute: true, deadlineMs: 50 })).computedCount).toBe(6);
  // Longer than computing everything, 50 ms, nothing may take that need not.
  expect(planTransfer(question({ mayCompute: true, deadlineMs: 500 })).computedCount).toBe(3);
  expect(planTransfer(question({ mayCompute: true, deadlineMs: 500, bytesPerMs: 200 })).computedCount).toBe(0);
  expect(planTransfer(question({ mayCompute: true, bytesPerMs: 0.01 })).computedCount).toBe(10);
});

test("a deadline is planned for by the speed that the link may fall to; without one the usual speed counts", () => {
  // Lossless KV takes 70 ms, and 170 at the speed that is feared, near KV 65.
  expect(new Set(names(question({ budget: "near", deadlineMs: 100 })))).toEqual(new Set(["lossless"]));
  expect(new Set(names(question({ budget: "near", deadlineMs: 100, lowBytesPerMs: 40 })))).toEqual(new Set(["near"]));
  expect(planTransfer(question({ lowBytesPerMs: 40 })).predictedMs).toBe(planTransfer(question({})).predictedMs);
});

test("where the deadline cannot be met at the feared speed, the plan that needs the least speed for it", () => {
  const asked = { budget: "near", deadlineMs: 40, mayCompute: true, lowBytesPerMs: 0.01 } as const;
  const steady = planTransfer(question({ ...asked, lowBytesPerMs: 100 }));
  const feared = planTransfer(question(asked));
  expect([steady.computedCount, names(question(asked))]).toEqual([7, ["near", "near"]]);
  // Eight chunks are computed just in time.
  expect(feared.computedCount).toBe(8);
  // At the usual speed nothing is in time: the soonest.
  expect(planTransfer(question({ ...asked, deadlineMs: 10, bytesPerMs: 0.01 })).computedCount).toBe(10);
});

test("what is under way and what the device is at go first", () => {
  const idle = planTransfer(question({ deadlineMs: 40, mayCompute: true }));
  const busyLink = planTransfer(question({ deadlineMs: 40, mayCompute: true, queuedBytes: 1_000 }));
  expect([idle, busyLink].map(({ computedCount }) => computedCount)).toEqual([7, 8]);
  const busyDevice = question({ deadlineMs: 40, mayCompute: true, computeBusyMs: 10, bytesPerMs: 120 });
  expect(planTransfer(busyDevice)).toMatchObject({ computedCount: 6, predictedMs: 40, meetsDeadline: true });
});

const questions = fc
  .record({
    chunks: fc.array(
      fc.record({
        rawBytes: fc.integer({ min: 1, max: 10_000 }),
        computeMs: fc.double({ min: 0.01, max: 50, noNaN: true }),
      }),
      { minLength: 1, maxLength: 12 },
    ),
    link: fc.record({
      bytesPerMs: fc.double({ min: 0.1, max: 10_000, noNaN: true }),
      activeStreams: fc.integer({ min: 1, max: 5 }),
      latencyMs: fc.double({ min: 0, max: 5, noNaN: true }),
      queuedBytes: fc.integer({ min: 0, max: 5_000 }),
    }),
    lowShare: fc.double({ min: 0.05, max: 1, noNaN: true }),
    budget: fc.constantFrom(...KV_ACCURACIES),
    deadlineMs: fc.option(fc.double({ min: 0.1, max: 500, noNaN: true }), { nil: undefined }),
    mayCompute: fc.boolean(),
    computeBusyMs: fc.double({ min: 0, max: 50, noNaN: true }),
    levels: fc.constant(LEVELS),
  })
  .map(({ lowShare, ...rest }): TransferQuestion & { readonly deadlineMs: number | undefined } => ({
    ...rest,
    link: { ...rest.link, lowBytesPerMs: lowShare * rest.link.bytesPerMs },
  }));

const rankOf = ({ accuracy }: CodecLevelFacts) => KV_ACCURACIES.indexOf(accuracy);

type Division = Pick<TransferPlan, "computedCount" | "levels">;

/** When what is computed and what travels is there, over a link of that speed. */
function timesOf(
  { chunks, link, computeBusyMs }: TransferQuestion,
  { computedCount, levels }: Division,
  bytesPerMs: number,
) {
  const rest = chunks.slice(computedCount);
  const computing = chunks.slice(0, computedCount).reduce((sum, chunk) => sum + chunk.computeMs, computeBusyMs);
  return {
    computingMs: computedCount === 0 ? 0 : computing,
    fetchingMs: rest.length === 0 ? 0 : fetchMs(rest, levels, { ...link, bytesPerMs }),
  };
}

const textMsOf = ({ chunks, computeBusyMs, mayCompute }: TransferQuestion) =>
  mayCompute ? chunks.reduce((sum, chunk) => sum + chunk.computeMs, computeBusyMs) : Number.POSITIVE_INFINITY;

/** Every plan with one level for all that travels, within the budget. */
function uniformPlans({
  chunks,
  budget,
  mayCompute,
}: TransferQuestion): readonly (Division & { readonly rank: number })[] {
  const counts = mayCompute ? Array.from({ length: chunks.length + 1 }, (_, count) => count) : [0];
  return LEVELS.filter((level) => rankOf(level) <= KV_ACCURACIES.indexOf(budget)).flatMap((level) =>
    counts.map((computedCount) => ({
      ...{ computedCount, rank: rankOf(level) },
      levels: chunks.slice(computedCount).map(() => level),
    })),
  );
}

test("no plan is less exact than its budget, or than the deadline needs at the feared speed", () => {
  fc.assert(
    fc.property(questions, (asked) => {
      const plan = planTransfer(asked);
      const { chunks, link, budget, deadlineMs, mayCompute } = asked;
      expect(plan.computedCount + plan.levels.length).toBe(chunks.length);
      expect(mayCompute || plan.computedCount === 0).toBe(true);
      expect(plan.levels.every((level) => rankOf(level) <= KV_ACCURACIES.indexOf(budget))).toBe(true);
      if (budget === "exact") expect(plan.levels.every((level) => level === RAW || level === LOSSLESS)).toBe(true);
      const meets = (division: Division, bytesPerMs: number, share = 0.7) => {
        const { computingMs, fetchingMs } = timesOf(asked, division, bytesPerMs);
        return computingMs <= (deadlineMs ?? 0) && fetchingMs <= Math.min(share * (deadlineMs ?? 0), textMsOf(asked));
      };
      const all = uniformPlans(asked);
      const soonestMs = (plans: readonly Division[], bytesPerMs: number) =>
        Math.min(
          ...plans
            .map((one) => timesOf(asked, one, bytesPerMs))
            .map((one) => Math.max(one.computingMs, one.fetchingMs)),
        );
      const exact = all.filter(({ rank }) => rank === 0);
      if (deadlineMs === undefined) {
        expect(plan.levels.every((level) => rankOf(level) === 0)).toBe(true);
        expect(plan.predictedMs).toBeCloseTo(soonestMs(exact, link.bytesPerMs), 6);
        return;
      }
      const mayMeet = (plans: readonly Division[], bytesPerMs: number, share?: number) =>
        plans.some((one) => meets(one, bytesPerMs, share));
      expect(plan.meetsDeadline).toBe(mayMeet(all, link.lowBytesPerMs) || mayMeet(all, link.bytesPerMs, 1));
      if (mayMeet(all, link.bytesPerMs)) expect(meets(plan, link.bytesPerMs)).toBe(true);
      if (plan.meetsDeadline) expect(meets(plan, link.bytesPerMs, 1)).toBe(true);
      else expect(plan.predictedMs).toBeCloseTo(soonestMs(all, link.bytesPerMs), 6);
      if (mayMeet(exact, link.lowBytesPerMs)) expect(plan.levels.every((level) => rankOf(level) === 0)).toBe(true);
      if (mayMeet(all, link.lowBytesPerMs)) expect(meets(plan, link.lowBytesPerMs)).toBe(true);
    }),
    { numRuns: 2_000 },
  );
});

test("where computing everything is in time, nothing is planned that would be later at the feared speed", () => {
  fc.assert(
    fc.property(questions, (drawn) => {
      const asked = { ...drawn, mayCompute: true };
      const textMs = textMsOf(asked);
      if (asked.deadlineMs !== undefined && textMs > asked.deadlineMs) return;
      const speed = asked.deadlineMs === undefined ? asked.link.bytesPerMs : asked.link.lowBytesPerMs;
      const { computingMs, fetchingMs } = timesOf(asked, planTransfer(asked), speed);
      expect(Math.max(computingMs, fetchingMs)).toBeLessThanOrEqual(textMs + 1e-9);
    }),
    { numRuns: 2_000 },
  );
});

test("the more the link varies, the less exact is what travels, never more", () => {
  fc.assert(
    fc.property(questions, fc.double({ min: 0.05, max: 1, noNaN: true }), (drawn, share) => {
      const asked = { ...drawn, mayCompute: false };
      const { link } = asked;
      const before = planTransfer(asked);
      const after = planTransfer({ ...asked, link: { ...link, lowBytesPerMs: share * link.lowBytesPerMs } });
      // Where the deadline cannot be met at the feared speed, other things than exactness are sought.
      if (!after.meetsDeadline || after.bytesPerMs > share * link.lowBytesPerMs) return;
      for (const [index, level] of after.levels.entries()) {
        expect(rankOf(level)).toBeGreaterThanOrEqual(rankOf(before.levels[index] as CodecLevelFacts));
      }
    }),
    { numRuns: 2_000 },
  );
});
