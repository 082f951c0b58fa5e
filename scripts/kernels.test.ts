import { expect, test } from "vitest";
// @ts-expect-error: a script without types
import { parseResources, table } from "./lib/kernels.mjs";

const REPORT = `ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'slow' for 'sm_80'
ptxas info    : Function properties for slow
    40 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 32 bytes smem, 384 bytes cmem[0]
ptxas info    : Function properties for __internal_trig_reduction_slowpathd
    0 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'slow' for 'sm_90a'
ptxas info    : Function properties for slow
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers
`;

test("resources of kernels are read from what ptxas says", () => {
  const kernels = parseResources(REPORT);
  expect(kernels).toEqual([
    { name: "slow", architecture: "sm_80", registers: 255, spillBytes: 24, sharedBytes: 32 },
    { name: "slow", architecture: "sm_90a", registers: 96, spillBytes: 0, sharedBytes: 0 },
  ]);
  expect(table(kernels)).toContain("255 (24 B spilled)  96");
});
