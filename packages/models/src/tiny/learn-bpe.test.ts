import { expect, test } from "vitest";
import { learnBpe } from "./learn-bpe.ts";

test("the commonest pair is merged first, ties by order", () => {
  const { merges, tokens } = learnBpe("aab aab xy", 3);
  expect(merges).toEqual([
    ["a", "a"],
    ["aa", "b"],
    ["x", "y"],
  ]);
  expect(tokens).toHaveLength(259);
});

test("it ends when there is nothing to merge", () => {
  expect(learnBpe("ab", 10).merges).toEqual([["a", "b"]]);
});
