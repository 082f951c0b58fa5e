import { expect, test } from "vitest";
import { oneLine } from "./one-line.ts";

test.each([
  ["as it is", "as it is"],
  ["two\r\nlines\tand a tab", "two\ufffdlines\ufffdand a tab"],
  ["half \ud800 a pair", "half \ufffd a pair"],
  ["é".repeat(400), `${"é".repeat(300)}…`],
])("%j becomes one line", (text, expected) => {
  expect(oneLine(text)).toBe(expected);
});
