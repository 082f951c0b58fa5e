import { describe, expect, test } from "vitest";
import { type AdmissionOptions, StoreAdmission } from "./admission.ts";

const OPTIONS: AdmissionOptions = {
  policy: "second-hit",
  keyCount: 1_000,
  blockTokenCount: 32,
  blockBytes: 1_000_000,
  bytesPerSecond: 1e9,
};
const hashes = (...numbers: number[]) =>
  Uint8Array.from(numbers.flatMap((number) => [0, 0, 0, 0, number, 1, 2, 3, ...new Array(8).fill(0)]));

const admission = (options: Partial<AdmissionOptions> = {}) => {
  const made = new StoreAdmission({ ...OPTIONS, ...options });
  let last = 0;
  const use = (blocks: Uint8Array, requestId = `r${++last}`, prefillTokensPerSecond = 0) =>
    made.used({ requestId, hashes: blocks, prefillTokensPerSecond });
  return { made, use };
};

test("`all` takes what it never saw", () => {
  expect(admission({ policy: "all" }).use(hashes(1, 2, 3))).toBe(3);
});

describe("second-hit", () => {
  test("takes what a second request uses, and of its text no more than that", () => {
    const { use } = admission();
    expect(use(hashes(1, 2, 3))).toBe(0);
    expect(use(hashes(1, 2, 9))).toBe(2);
    expect(use(hashes(1, 8))).toBe(1);
  });

  test("a request that two workers tell of is one use; what the second one adds to its text is new", () => {
    const { made, use } = admission();
    use(hashes(1, 2), "a");
    expect(use(hashes(1, 2, 3), "a")).toBe(0);
    expect([1, 2, 3].map((number) => made.usesOf(hashes(number)))).toEqual([1, 1, 1]);
    expect(use(hashes(1, 2, 3), "b")).toBe(3);
  });
});

describe("cost", () => {
  test("takes at first sight what is slow to compute, not what is as quick to compute as to move", () => {
    // A block takes 1 ms to move; 32 tokens at 3,200/s are 10 ms, at 32,000/s 1 ms. Before anything is seen, p is 1/2.
    expect(admission({ policy: "cost" }).use(hashes(1, 2), "a", 3_200)).toBe(2);
    const fast = admission({ policy: "cost" });
    expect(fast.use(hashes(1, 2), "a", 32_000)).toBe(0);
    expect(fast.use(hashes(1, 2), "b", 32_000), "came again").toBe(2);
    expect(admission({ policy: "cost" }).use(hashes(1), "a", 0), "speed unknown").toBe(0);
  });

  test("learns that nothing comes again", () => {
    const { made, use } = admission({ policy: "cost" });
    for (let number = 0; number < 100; number++) use(hashes(number), undefined, 3_200);
    expect(made.againChance).toBeLessThan(0.02);
    expect(use(hashes(200), undefined, 3_200)).toBe(0);
  });
});
