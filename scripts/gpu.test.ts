import { expect, test } from "vitest";
// @ts-expect-error: a script without types
import { page } from "./lib/gpu.mjs";

test("the page of a GPU run names device, date, suite and table", () => {
  const text = page({
    gpu: "NVIDIA H200, 580.1",
    after: undefined,
    date: new Date("2030-01-02T03:04:05Z"),
    checked: { code: 1, lines: ["device: x", "ok      rmsnorm", "ok      gemm", "FAILED  sample: 3"] },
    measured: { code: 0, lines: ["| rmsnorm | 1 |"] },
  });
  expect(text).toContain("2030-01-02 03:04 UTC. Before: NVIDIA H200, 580.1. After: not read");
  expect(text).toContain("2 cases agree, 1 do not.");
  expect(text).toContain("| rmsnorm | 1 |");
});
