import fc from "fast-check";
import { expect, test } from "vitest";
import { type LinkSpeed, observedLink, type TrafficFacts } from "./index.ts";

const MiB = 2 ** 20;
const raw = (bytes: number): TrafficFacts => ({ wireBytes: bytes, rawBytes: bytes, encodeMs: 0, decodeMs: 0 });
/** A link after transfers at these speeds, in MiB a millisecond. */
const after = (...speeds: readonly number[]) =>
  speeds.reduce<LinkSpeed | undefined>((link, speed) => observedLink(link, raw(MiB), 1 / speed, 1), undefined);

test("a link that waited for the coders is held for faster each time, and a slower one is believed", () => {
  const coded = { wireBytes: MiB, rawBytes: 5 * MiB, encodeMs: 9, decodeMs: 3 };
  const known = after(1);
  expect(observedLink(undefined, coded, 10, 1)?.usual).toBe(MiB / 10);
  expect(observedLink(known, coded, 10, 1)?.usual).toBe(1.5 * MiB);
  expect(observedLink(known, { ...coded, encodeMs: 1 }, 10, 1)?.usual).toBe((MiB + MiB / 10) / 2);
  expect(observedLink(known, raw(MiB), 10, 4)?.usual).toBe((MiB + (4 * MiB) / 10) / 2);
  expect(observedLink(known, raw(1_000), 10, 1)).toBe(known);
  expect(observedLink(known, raw(1_000), 100, 1)?.low).toBe(10);
});

test("half of the mean speed is feared until four transfers told how much it varies, then their slowest or nearly", () => {
  expect([after(1), after(1, 1, 1)].map((link) => (link?.low ?? 0) / MiB)).toEqual([0.5, 0.5]);
  expect((after(1, 1, 1, 1)?.low ?? 0) / MiB).toBe(1);
  expect((after(1, 0.25, 1, 1)?.low ?? 0) / MiB).toBe(0.25);
  const nine = Array<number>(9).fill(1);
  expect((after(0.25, ...nine)?.low ?? 0) / MiB).toBe(0.25);
  expect((after(0.25, ...nine, 1)?.low ?? 0) / MiB).toBeCloseTo(1, 2);
  expect((after(0.25, 0.25, ...nine)?.low ?? 0) / MiB).toBe(0.25);
});

test("what is feared is never faster than usual, and forgotten in the end", () => {
  const speeds = fc.array(fc.double({ min: 0.01, max: 100, noNaN: true }), { minLength: 1, maxLength: 40 });
  fc.assert(
    fc.property(speeds, (drawn) => {
      const link = after(...drawn) as LinkSpeed;
      expect(link.low).toBeLessThanOrEqual(link.usual);
      expect(link.low).toBeGreaterThanOrEqual(0.5 * Math.min(...link.recent));
      const calm = after(...drawn, ...Array<number>(64).fill(1)) as LinkSpeed;
      expect(calm.low / calm.usual).toBeCloseTo(1, 6);
    }),
  );
});
