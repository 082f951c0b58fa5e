import { expect, test } from "vitest";
import type { RequestKey } from "./reservations.ts";
import { at } from "./testing/world.ts";
import { WorkerTrust } from "./worker-trust.ts";

const key = (number: number) => number as RequestKey;

test("a worker that fails three requests in a row is avoided, longer each time, until one gets its first token there", () => {
  const trust = new WorkerTrust();
  trust.failed("w@1", key(1), at(0));
  trust.failed("w@1", key(1), at(1));
  trust.failed("w@1", key(2), at(2));
  expect(trust.isAvoided("w@1", at(2))).toBe(false);
  trust.failed("w@1", key(3), at(10));
  // Placed before it was avoided.
  trust.failed("w@1", key(4), at(20));
  expect([trust.isAvoided("w@1", at(1_009)), trust.isAvoided("w@1", at(1_010))]).toEqual([true, false]);
  trust.failed("w@1", key(5), at(1_100));
  expect([trust.isAvoided("w@1", at(3_099)), trust.isAvoided("w@1", at(3_100))]).toEqual([true, false]);
  for (let number = 6, ms = 4_000; number < 20; number++, ms += 40_000) trust.failed("w@1", key(number), at(ms));
  expect(trust.isAvoided("w@1", at(4_000 + 13 * 40_000 + 29_999))).toBe(true);
  expect(trust.isAvoided("w@1", at(4_000 + 13 * 40_000 + 30_000))).toBe(false);
  trust.succeeded("w@1");
  trust.failed("w@1", key(30), at(1_000_000));
  trust.failed("w@1", key(31), at(1_000_000));
  expect(trust.isAvoided("w@1", at(1_000_000))).toBe(false);
  expect(trust.isAvoided("w@2", at(1_000_000))).toBe(false);
});
