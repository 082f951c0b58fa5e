import fc from "fast-check";
import { expect, test } from "vitest";
import type { MeasuredLink } from "../codec-level/index.ts";
import { LinkBelief } from "./link-belief.ts";
import { at } from "./testing/world.ts";

const ASSUMED = 500e6;
const RECEIVER = { workerId: "d1" };
const SOURCE = { transferAddress: "p1:9" };
/** In bytes a second; of an exact, a near and a fast request. */
const link = (exact: number, near = exact, fast = near, ms = 0, source = "p1:9"): MeasuredLink => ({
  source,
  measuredAt: at(ms),
  rates: { exact: exact / 1e3, near: near / 1e3, fast: fast / 1e3 },
});
const belief = (...links: readonly MeasuredLink[]) => {
  const known = new LinkBelief(ASSUMED);
  known.told("d1", links);
  return known;
};

test("a link that nobody measured is as assumed", () => {
  const assumed = { bytesPerSecond: ASSUMED, accuracy: "fast", ageMs: undefined, isOfSource: false, waitMs: 0 };
  const rates = belief(link(1e6)).ratesFor("fast", at(0));
  expect(rates.assumed).toEqual(assumed);
  expect(rates.from({ transferAddress: "p2:9" })(RECEIVER)).toEqual(assumed);
  expect(rates.from(SOURCE)({ workerId: "d2" })).toEqual(assumed);
  expect([rates.areAllAssumed, belief().ratesFor("fast", at(0)).areAllAssumed]).toEqual([false, true]);
  // One that tells no address, as an older worker.
  expect(rates.from({})(RECEIVER)).toEqual(assumed);
});

test("what was measured is believed at once, by what the request allows to be lost, and the newest counts", () => {
  const links = belief(link(1e6, 5e6, 9e6));
  const told = () =>
    (["exact", "near", "fast"] as const).map(
      (accuracy) => links.ratesFor(accuracy, at(0)).from(SOURCE)(RECEIVER).bytesPerSecond,
    );
  expect(told().map(Math.round)).toEqual([1e6, 5e6, 9e6]);
  links.told("d1", [link(2e6)]);
  expect(told().map(Math.round)).toEqual([2e6, 2e6, 2e6]);
});

test("it goes back to what is assumed as it gets old: half of the way, by factors, in a minute", () => {
  const links = belief(link(5e6));
  const after = (minutes: number) => links.ratesFor("exact", at(minutes * 60_000)).from(SOURCE)(RECEIVER);
  expect(after(0)).toMatchObject({ bytesPerSecond: expect.closeTo(5e6), ageMs: 0 });
  // The square root of a hundred from either.
  expect(after(1)).toMatchObject({ bytesPerSecond: expect.closeTo(50e6), ageMs: 60_000 });
  expect(after(10).bytesPerSecond).toBeGreaterThan(0.99 * ASSUMED);
  expect(after(1e5).bytesPerSecond).toBeCloseTo(ASSUMED);
});

test("a worker that is gone, or there anew, has measured nothing; of very many sources those told of last are known", () => {
  const links = belief(link(1e6));
  links.forget("d1");
  expect(links.ratesFor("exact", at(0)).areAllAssumed).toBe(true);
  for (let source = 0; source < 200; source++) links.told("d1", [link(1e6, 1e6, 1e6, 0, `p${source}:9`)]);
  const isMeasured = (source: number) =>
    links.ratesFor("exact", at(0)).from({ transferAddress: `p${source}:9` })(RECEIVER).ageMs !== undefined;
  expect([isMeasured(0), isMeasured(71), isMeasured(72), isMeasured(199)]).toEqual([false, false, true, true]);
});

test("a link that was not measured is no quicker than the quickest of several from the same source that were", () => {
  const links = belief(link(1e6));
  const other = (accuracy: "exact" | "fast" = "exact", ms = 0) =>
    links.ratesFor(accuracy, at(ms)).from(SOURCE)({ workerId: "d9" });
  // One receiver may be behind a slow link of its own.
  expect(other()).toMatchObject({ bytesPerSecond: ASSUMED, isOfSource: false });
  links.told("d2", [link(2e6, 2e6, 600e6)]);
  expect(other()).toMatchObject({ bytesPerSecond: expect.closeTo(2e6), isOfSource: true, ageMs: undefined });
  expect(other("fast")).toMatchObject({ bytesPerSecond: ASSUMED, isOfSource: false });
  // Looked at again after a while, and as old as they are by then.
  links.told("d3", [link(8e6)]);
  expect(other("exact", 50).bytesPerSecond).toBeCloseTo(2e6);
  expect(other("exact", 60_000).bytesPerSecond).toBeCloseTo(Math.sqrt(8e6 * ASSUMED));
  links.forget("d2");
  links.forget("d3");
  expect(other("exact", 60_000)).toMatchObject({ bytesPerSecond: ASSUMED, isOfSource: false });
});

test("what was placed over a measured link goes before what comes next, from when it begins to travel", () => {
  const links = belief(link(1e6));
  const waitMs = (ms: number, workerId = "d1") => links.ratesFor("exact", at(ms)).from(SOURCE)({ workerId }).waitMs;
  links.placed(RECEIVER, SOURCE, { startsInMs: 0, linkMs: 300 }, at(1_000));
  expect([waitMs(1_000), waitMs(1_200), waitMs(1_300), waitMs(9_000)]).toEqual([300, 100, 0, 0]);
  links.placed(RECEIVER, SOURCE, { startsInMs: 500, linkMs: 100 }, at(1_000));
  links.placed(RECEIVER, SOURCE, { startsInMs: 0, linkMs: 50 }, at(1_000));
  expect(waitMs(1_000)).toBe(650);
  // A report does not empty the link.
  links.told("d1", [link(2e6, 2e6, 2e6, 1_000)]);
  expect(waitMs(1_000)).toBe(650);
  // Of a link that was not measured nothing is known that could be late.
  links.placed({ workerId: "d2" }, SOURCE, { startsInMs: 0, linkMs: 300 }, at(1_000));
  expect(waitMs(1_000, "d2")).toBe(0);
});

test("what is believed lies between the measured and the assumed rate, the nearer to this the older, and grows with the measured one", () => {
  const rate = fc.double({ min: 1e3, max: 1e11, noNaN: true });
  const age = fc.double({ min: 0, max: 1e7, noNaN: true });
  fc.assert(
    fc.property(rate, rate, age, age, (one, other, ageOne, ageOther) => {
      const [low, high] = [Math.min(one, other), Math.max(one, other)];
      const [young, old] = [Math.min(ageOne, ageOther), Math.max(ageOne, ageOther)];
      const of = (measured: number, ageMs: number) =>
        belief(link(measured)).ratesFor("exact", at(ageMs)).from(SOURCE)(RECEIVER).bytesPerSecond;
      const slack = 1 + 1e-9;
      expect(of(low, young)).toBeLessThanOrEqual(of(high, young) * slack);
      const [near, far] = [of(one, young), of(one, old)].map((believed) => Math.abs(Math.log(believed / ASSUMED)));
      expect(far).toBeLessThanOrEqual((near ?? 0) + 1e-9);
      expect(of(one, young)).toBeGreaterThanOrEqual(Math.min(one, ASSUMED) / slack);
      expect(of(one, young)).toBeLessThanOrEqual(Math.max(one, ASSUMED) * slack);
    }),
  );
});
