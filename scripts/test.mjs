import { bootstrap } from "./lib/bootstrap.mjs";
import { StopError } from "./lib/stop-error.mjs";
import { NOTHING, plus, runCargoTests, runVitest, summaryLine } from "./lib/test-runs.mjs";

// `npm test`: everything, Rust and TypeScript. `npm test -- PATTERN`: the TypeScript test files whose path has PATTERN in it.
// The last line is always `N passed, N failed, N skipped`; exit code 0 only if something ran and nothing failed.
/** Parts that take long to get, and the only test that needs each. */
const PARTS_OF_TESTS = { jaeger: "e2e/src/jaeger.test.ts", prometheus: "e2e/src/prometheus.test.ts" };
const patterns = process.argv.slice(2);
let total = NOTHING;
try {
  const need = ["deps", "sidecar", "redis-server", "model:tiny", "model:smollm2"];
  for (const [part, file] of Object.entries(PARTS_OF_TESTS)) {
    if (patterns.length === 0 || patterns.some((pattern) => file.includes(pattern))) need.push(`${part}?`);
  }
  if (patterns.length === 0) need.push("c++");
  const tools = await bootstrap({ need });
  total = await runVitest(tools, patterns);
  if (patterns.length === 0) total = plus(total, await runCargoTests(tools));
} catch (error) {
  process.stderr.write(`${error instanceof StopError ? error.message : error.stack}\n`);
  total = plus(total, { ...NOTHING, isBroken: true });
}
process.stdout.write(`${summaryLine(total)}\n`);
process.exitCode = total.isBroken || total.failed > 0 || total.passed + total.failed === 0 ? 1 : 0;
