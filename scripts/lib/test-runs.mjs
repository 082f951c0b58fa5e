import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { CACHE, ROOT, SIDECAR_DIR } from "./paths.mjs";
import { handOver, run } from "./processes.mjs";
import { seconds } from "./report.mjs";
import { crateProgress } from "./sidecar-build.mjs";

/** Counts of tests; `isBroken` when a runner ended badly in a way that no test shows. */
export const NOTHING = { passed: 0, failed: 0, skipped: 0, isBroken: false };

export function plus(a, b) {
  return {
    passed: a.passed + b.passed,
    failed: a.failed + b.failed,
    skipped: a.skipped + b.skipped,
    isBroken: a.isBroken || b.isBroken,
  };
}

export function summaryLine({ passed, failed, skipped }) {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}

/** Runs vitest in the terminal and counts from its JSON report. */
export async function runVitest(tools, patterns) {
  const report = join(CACHE, "test-report.json");
  mkdirSync(CACHE, { recursive: true });
  rmSync(report, { force: true });
  const reporters = ["--reporter", "default", "--reporter", "json", "--outputFile.json", report];
  const vitest = join(ROOT, "node_modules/vitest/vitest.mjs");
  const start = performance.now();
  const code = await handOver(tools.node, [vitest, "run", ...reporters, ...patterns], { cwd: ROOT, env: tools.env });
  process.stdout.write(`vitest ${seconds(start)}\n`);
  try {
    const counts = countVitest(JSON.parse(readFileSync(report, "utf8")));
    return { ...counts, isBroken: code !== 0 && counts.failed === 0 };
  } catch (error) {
    process.stderr.write(`vitest left no report (exit code ${code}): ${error.message}\n`);
    return { ...NOTHING, isBroken: true };
  }
}

/** A file that could not even be loaded has no test in the report: it counts as one that failed. */
export function countVitest(report) {
  const unloadable = report.testResults.filter(
    (file) => file.status === "failed" && !file.assertionResults.some((test) => test.status === "failed"),
  );
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + unloadable.length,
    skipped: report.numPendingTests + report.numTodoTests,
    isBroken: false,
  };
}

/** Runs the workspace's Rust tests in release mode, which shares the dependencies of the build. */
export async function runCargoTests(tools) {
  const start = performance.now();
  let counts = NOTHING;
  const say = (line) => process.stdout.write(`  ${line}\n`);
  const progress = crateProgress(say);
  const onLine = (line) => {
    progress(line);
    const result = countCargoLine(line);
    if (result !== undefined) counts = plus(counts, result);
    // Passing tests are only counted; what fails is shown with all it says.
    if (
      !/^test .* ok$|^\s*(Compiling|Checking|Downloading|Downloaded|Finished|Running|Doc-tests) |^$|^running \d+ tests?$/.test(
        line,
      )
    )
      say(line);
  };
  const flags = ["test", "--release", "--locked", "--workspace", "--no-fail-fast"];
  const { code } = await run(tools.cargo, flags, { cwd: SIDECAR_DIR, env: tools.env, onLine });
  process.stdout.write(`cargo test ${seconds(start)}\n`);
  return { ...counts, isBroken: code !== 0 && counts.failed === 0 };
}

/** Counts of one `test result: …` line of cargo, undefined for any other line. */
export function countCargoLine(line) {
  const found = /^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;/.exec(line);
  if (found === null) return undefined;
  return { passed: Number(found[1]), failed: Number(found[2]), skipped: Number(found[3]), isBroken: false };
}
