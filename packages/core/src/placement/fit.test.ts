import { expect, test } from "vitest";
import { checkFit } from "./fit.ts";
import { facts, request } from "./testing/world.ts";

const pair = [facts("p0"), facts("d0")];

test.each([
  [request(100, 20), pair, "possible"],
  [request(300, 20), pair, "possible"],
  [request(100, 20), [], "possible"],
  [request(100, 20, "big"), [], "possible"],
  [request(9_999, 20), [facts("p0", { contextLength: 99_999, blockCount: 9_999 })], "possible"],
  [request(0, 20), pair, "the prompt has no tokens; send at least one"],
  [request(5, 0), pair, "max_tokens is 0; use at least 1"],
  [request(5, 5, "big"), [...pair, facts("d1", { model: "also" })], 'model "big" is not served here; use also or tiny'],
  [request(320, 1), pair, "the prompt has 320 tokens; the context holds 320"],
  [request(300, 21), pair, "300 prompt tokens and max_tokens 21 exceed the context of 320; use max_tokens 20 or less"],
  [
    request(300, 20),
    [facts("p0"), facts("d0", { blockCount: 9 })],
    "300 prompt tokens and max_tokens 20 exceed the largest KV pool, which holds 288 tokens",
  ],
  [
    request(300, 20),
    [facts("p0", { blockCount: 9 }), facts("d0")],
    "the prompt has 300 tokens; the largest prefill worker holds 288",
  ],
  [request(300, 20), [facts("p0", { blockCount: 9 }), facts("d0"), facts("m0")], "possible"],
])("%j", (shape, known, expected) => {
  const outcome = checkFit(shape, known);
  expect(outcome.kind === "never" ? outcome.message : outcome.kind).toBe(expected);
});
