import { expect, test } from "vitest";
// @ts-expect-error: a script without types
import { page } from "./lib/gpu.mjs";

const part = (text: string) => ({ code: 0, text, error: "" });

test("the page of a GPU run names device, date, suite, tables and what failed", () => {
  const text = page({
    date: "2030-01-02T03:04Z",
    before: "NVIDIA H200, 580.1",
    after: "",
    check: { code: 1, text: "device: x\nok      rmsnorm\nok      gemm\nFAILED  sample: 3", error: "" },
    bench: part("| rmsnorm | 1 |"),
    cluster: { code: 124, text: "| 512 | 1 |", error: "kvasir-gpu: a pull ended\n" },
    baseline: part("| decode step | 9 |"),
  });
  expect(text).toContain("2030-01-02T03:04Z. Before: NVIDIA H200, 580.1. After: not read");
  expect(text).toContain("2 cases agree, 1 do not.");
  expect(text).toContain("- FAILED  sample: 3");
  expect(text).toContain("| rmsnorm | 1 |");
  expect(text).toContain("| decode step | 9 |");
  expect(text).toContain("Ended with code 124: kvasir-gpu: a pull ended");
});
