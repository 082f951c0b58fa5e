import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
// @ts-expect-error: a script without types
import { page, partsOf } from "./lib/gpu-page.mjs";

const RESULTS = `=== facts code 0 seconds 0
2030-01-02T03:04Z
Name: NVIDIA H200, 580.1
--- stderr
=== check code 1 seconds 30
device: x
ok      rmsnorm
ok      logits of smollm2: relative difference 1e-3
FAILED  sample: 3
--- stderr
kvasir-gpu: 1 cases failed
=== bench code 0 seconds 60
| rmsnorm | 1 |
| decode step, 1 of 4096 context | 4.000 | 250 | 90 % |
--- stderr
=== baseline code 0 seconds 20
| decode step, 1 of 4096 context | 14.000 | 71 |
--- stderr
=== cluster code 124 seconds 90
| 512 | 1 |
--- stderr
kvasir-gpu: a pull ended

=== after code 0 seconds 0
After: 90 W
--- stderr
`;

test("a run's parts are told apart, with how they ended", () => {
  const parts = partsOf(RESULTS);
  expect([...parts.keys()]).toEqual(["facts", "check", "bench", "baseline", "cluster", "after"]);
  expect(parts.get("cluster")).toEqual({
    code: 124,
    seconds: 90,
    text: "| 512 | 1 |",
    error: "kvasir-gpu: a pull ended",
  });
});

test("the page of a GPU run names device, date, suite, tables, ratios, what failed and what was not run", () => {
  const text = page(RESULTS);
  expect(text).toContain("200 s in all. 2030-01-02T03:04Z. Name: NVIDIA H200, 580.1. After: 90 W.");
  expect(text).toContain("2 cases agree,\n1 do not.");
  expect(text).toContain("- FAILED  sample: 3");
  expect(text).toContain("- logits of smollm2: relative difference 1e-3");
  expect(text).toContain("| rmsnorm | 1 |");
  expect(text).toContain("- decode step, 1 of 4096 context: 3.50 times as fast");
  expect(text).toContain("Ended with code 124: kvasir-gpu: a pull ended");
  expect(text).toContain("Ended with code 1: it was not run");
  expect(text).toContain("compute-sanitizer was not there.");
});

test("without a GPU the run says so, checks nothing, and leaves nothing that looks like a result", () => {
  const folder = mkdtempSync(join(tmpdir(), "kvasir-gpu-test-"));
  try {
    const script = join(import.meta.dirname, "gpu-run.sh");
    execFileSync("sh", ["-n", script]);
    const shell = execFileSync("sh", ["-c", "command -v sh"], { encoding: "utf8" }).trim();
    const env = { PATH: withoutGpu(folder) };
    const { status, stdout } = spawnSync(shell, [script, join(folder, "out")], { encoding: "utf8", env });
    expect(stdout).toContain("no GPU here");
    expect(status).toBe(1);
    expect(readFileSync(join(folder, "out/results.txt"), "utf8")).toBe("");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

/** A PATH with the few programs that the script calls before it looks for a GPU, so that the test holds on a machine that has one. */
function withoutGpu(folder: string): string {
  const script =
    'mkdir "$1/bin" && for name in dirname date mkdir; do ln -s "$(command -v $name)" "$1/bin/$name"; done';
  execFileSync("sh", ["-c", script, "sh", folder]);
  return join(folder, "bin");
}
