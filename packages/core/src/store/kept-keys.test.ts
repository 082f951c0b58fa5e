import { expect, test } from "vitest";
import { type Instant, NEVER } from "../time.ts";
import { keptKeys } from "./kept-keys.ts";

const key = (number: number) => new Uint8Array(16).fill(number);
const at = (seconds: number) => (seconds * 1e9) as Instant;
const numbers = (keys: readonly Uint8Array[]) => keys.map(([first]) => first);

test("texts that share their beginning keep it once, until the last of them ends", () => {
  const texts = [
    { keys: [key(1), key(2), key(3)], expiresAt: at(10) },
    { keys: [key(1), key(4)], expiresAt: NEVER },
  ];
  expect(numbers(keptKeys(texts, 9, at(9)))).toEqual([1, 2, 3, 4]);
  expect(numbers(keptKeys(texts, 9, at(10)))).toEqual([1, 4]);
});

test("there is room for the first texts, and of the last one for its beginning", () => {
  const texts = [
    { keys: [key(1), key(2)], expiresAt: NEVER },
    { keys: [key(1), key(3), key(4)], expiresAt: NEVER },
  ];
  expect(numbers(keptKeys(texts, 3, at(0)))).toEqual([1, 2, 3]);
  expect(numbers(keptKeys(texts, 0, at(0)))).toEqual([]);
});
