import { expect, test } from "vitest";
import { DecodeLife } from "./decode-life.ts";
import { at } from "./testing/world.ts";

test("answers of two seconds are told as such, whatever was predicted", () => {
  const life = new DecodeLife(at(0));
  expect(life.meanMs(at(0))).toBe(Number.POSITIVE_INFINITY);
  for (let ms = 0; ms < 30_000; ms += 100) {
    life.began(10_000, at(ms));
    if (ms >= 2_000) life.ended(at(ms));
  }
  expect(life.count).toBe(20);
  expect(Math.abs(life.meanMs(at(30_000)) / 2_000 - 1)).toBeLessThan(0.1);
});

test("answers that are predicted short and do not end are soon believed to be long", () => {
  const life = new DecodeLife(at(0));
  for (let i = 0; i < 10; i++) {
    life.began(50, at(0));
    life.ended(at(50));
  }
  for (let i = 0; i < 10; i++) life.began(50, at(100));
  expect(life.meanMs(at(100))).toBeLessThan(100);
  // Ten that run a second are as much time as a dozen ends of late took together.
  expect(life.meanMs(at(1_100))).toBeGreaterThan(800);
  expect(life.meanMs(at(10_100))).toBeGreaterThan(8_000);
});
