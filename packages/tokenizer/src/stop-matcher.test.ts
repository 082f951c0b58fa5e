import fc from "fast-check";
import { expect, test } from "vitest";
import { createStopMatcher } from "./stop-matcher.ts";

const letters = fc.constantFrom("a", "b");
const words = fc.string({ unit: letters, minLength: 1, maxLength: 4 });

test("pieces cut anyhow show the text before the first stop string", () => {
  fc.assert(
    fc.property(
      fc.array(fc.string({ unit: letters, maxLength: 3 })),
      fc.array(words, { maxLength: 3 }),
      (pieces, stops) => {
        const matcher = createStopMatcher(stops);
        let shown = "";
        let matched: string | undefined;
        for (const piece of pieces) {
          const result = matcher.push(piece);
          shown += result.text;
          matched = result.matched;
          if (matched !== undefined) break;
        }
        if (matched === undefined) shown += matcher.flush();
        const seen = pieces.join("");
        if (matched === undefined) {
          expect(shown).toBe(seen);
          for (const stop of stops) expect(seen).not.toContain(stop);
        } else {
          expect(seen.startsWith(shown + matched)).toBe(true);
          for (const stop of stops) expect(shown).not.toContain(stop);
        }
      },
    ),
    { numRuns: 2_000 },
  );
});

test("only what may begin a stop string is held back", () => {
  const matcher = createStopMatcher(["STOP", "\n\n"]);
  expect(matcher.push("go ST").text).toBe("go ");
  expect(matcher.push("AY\n").text).toBe("STAY");
  expect(matcher.push("x").text).toBe("\nx");
  expect(matcher.push("\n\nrest")).toEqual({ text: "", matched: "\n\n" });
});

test("at the same place the longer stop string wins", () => {
  expect(createStopMatcher(["ab", "abc"]).push("xabcd")).toEqual({ text: "x", matched: "abc" });
});
