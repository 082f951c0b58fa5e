import fc from "fast-check";
import { expect, test } from "vitest";
import type { RequestKey } from "./reservations.ts";
import { at } from "./testing/world.ts";
import { type PlacedWork, WorkLedger } from "./work-ledger.ts";

const work = (prefillMs: number, extra: Partial<PlacedWork> = {}): PlacedWork => ({
  prefillOn: "p",
  prefillMs,
  besideMs: prefillMs,
  decodeOn: "d",
  contextTokenCount: 100,
  predicted: { ttftMs: prefillMs, tbtMs: 10 },
  answerMs: 1_000,
  tbtTargetMs: 50,
  ...extra,
});
const key = (number: number) => number as RequestKey;

test("a queue shrinks as time passes, by no more than the prompt in front until its first token is there", () => {
  const ledger = new WorkLedger();
  ledger.placed(key(1), work(100), at(0));
  ledger.placed(key(2), work(50), at(10));
  expect(ledger.standing("p", at(10)).queueMs).toBeCloseTo(140);
  expect(ledger.standing("p", at(80)).queueMs).toBeCloseTo(70);
  expect(ledger.standing("p", at(500)).queueMs).toBeCloseTo(50);
  ledger.firstToken(key(1), at(500));
  expect(ledger.standing("p", at(500)).queueMs).toBeCloseTo(50);
  expect(ledger.standing("p", at(530)).queueMs).toBeCloseTo(20);
});

test("a worker whose first tokens take three times as long as predicted is soon predicted so", () => {
  const ledger = new WorkLedger();
  for (let number = 0; number < 30; number++) {
    const predictedMs = 100 * ledger.standing("p", at(0)).slowness;
    ledger.placed(key(number), work(predictedMs), at(number * 1_000));
    ledger.firstToken(key(number), at(number * 1_000 + 300));
    ledger.ended(key(number), at(number * 1_000 + 400));
  }
  expect(ledger.standing("p", at(0)).slowness).toBeGreaterThan(2.7);
  expect(ledger.standing("p", at(0)).slowness).toBeLessThan(3.1);
});

test("many first tokens of one burst, all predicted before the first was measured, tell one thing and not many", () => {
  const ledger = new WorkLedger();
  for (let number = 0; number < 40; number++) ledger.placed(key(number), work(100), at(0));
  for (let number = 0; number < 40; number++) ledger.firstToken(key(number), at(200));
  expect(ledger.standing("p", at(200)).slowness).toBeGreaterThan(1.8);
  expect(ledger.standing("p", at(200)).slowness).toBeLessThanOrEqual(2);
});

test("what another rule predicted is no worker's error", () => {
  const ledger = new WorkLedger();
  for (let number = 0; number < 40; number++) {
    ledger.placed(key(number), work(100, { predicted: undefined }), at(number * 1_000));
    ledger.firstToken(key(number), at(number * 1_000 + 500));
    ledger.ended(key(number), at(number * 1_000 + 900), { outputTokenCount: 100, tbtMs: 90 });
  }
  expect(ledger.standing("p", at(40_000)).slowness).toBe(1);
  expect(ledger.standing("d", at(40_000)).gapSlowness).toBe(1);
});

test("gaps longer than predicted are a worker's own where others' are not; what all have in common moves nothing", () => {
  const slownessOf = (measured: Readonly<Record<string, number>>): Record<string, number> => {
    const ledger = new WorkLedger();
    for (let number = 0; number < 400; number++) {
      const decodeOn = Object.keys(measured)[number % 4] ?? "";
      const { gapSlowness } = ledger.standing(decodeOn, at(number));
      ledger.placed(key(number), work(1, { decodeOn, predicted: { ttftMs: 1, tbtMs: 10 * gapSlowness } }), at(number));
      ledger.firstToken(key(number), at(number));
      const tbtMs = (measured[decodeOn] ?? 0) * (0.8 + 0.1 * (number % 5));
      ledger.ended(key(number), at(number), { outputTokenCount: 100, tbtMs });
    }
    return Object.fromEntries(Object.keys(measured).map((name) => [name, ledger.standing(name, at(400)).gapSlowness]));
  };
  expect(slownessOf({ a: 20, b: 20, c: 20, d: 20 })).toEqual({ a: 1, b: 1, c: 1, d: 1 });
  const { slow, ...others } = slownessOf({ a: 10, b: 10, c: 10, slow: 40 });
  expect(others).toEqual({ a: 1, b: 1, c: 1 });
  expect(slow).toBeGreaterThan(2.5);
  // One that promises a quarter of what it keeps is the same.
  expect(slownessOf({ a: 10, b: 10, c: 10, fast: 5 }).fast).toBe(1);
});

test("the strictest target counts as long as somebody has it", () => {
  const ledger = new WorkLedger();
  ledger.placed(key(1), work(1, { tbtTargetMs: 20 }), at(0));
  ledger.placed(key(2), work(1, { tbtTargetMs: 90 }), at(0));
  expect(ledger.standing("d", at(0)).strictestTbtMs).toBe(20);
  ledger.ended(key(1), at(1));
  expect(ledger.standing("d", at(0)).strictestTbtMs).toBe(90);
  ledger.ended(key(2), at(1));
  expect(ledger.standing("d", at(0)).strictestTbtMs).toBe(Number.POSITIVE_INFINITY);
});

test("whatever is placed, answered and ended, in any order and twice: nothing is left, and no queue is negative", () => {
  const step = fc.record({ key: fc.nat(5), what: fc.constantFrom("placed", "firstToken", "ended"), ms: fc.nat(300) });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const ledger = new WorkLedger();
      const live = new Set<number>();
      let now = 0;
      for (const { key: number, what, ms } of steps) {
        now += ms;
        if (what === "placed" && !live.has(number)) {
          live.add(number);
          ledger.placed(key(number), work(ms), at(now));
        } else if (what === "firstToken") ledger.firstToken(key(number), at(now));
        else if (what === "ended") {
          live.delete(number);
          ledger.ended(key(number), at(now));
        }
        expect(ledger.standing("p", at(now)).queueMs).toBeGreaterThanOrEqual(0);
        expect(ledger.standing("d", at(now)).sequenceCount).toBe(live.size);
      }
      for (const number of live) ledger.ended(key(number), at(now));
      expect([
        ledger.standing("p", at(now)).queueMs,
        ledger.standing("d", at(now)).sequenceCount,
        ledger.standing("d", at(now)).contextTokenCount,
      ]).toEqual([0, 0, 0]);
    }),
  );
});
