import { existsSync } from "node:fs";
import { join } from "node:path";
import { ensureNode } from "./lib/node-runtime.mjs";
import { ROOT } from "./lib/paths.mjs";
import { handOver } from "./lib/processes.mjs";
import { runScript, StopError } from "./lib/stop-error.mjs";

// `npm run trace -- ID`: runs packages/cli/src/trace.ts. It sets up nothing else: whoever has a trace has a cluster.
await runScript(async () => {
  if (!existsSync(join(ROOT, "packages/cli/node_modules"))) {
    throw new StopError("the dependencies are not installed; run npm run up once");
  }
  const { path } = await ensureNode((line) => process.stderr.write(`${line}\n`));
  return handOver(path, [join(ROOT, "packages/cli/src/trace.ts"), ...process.argv.slice(2)], { env: process.env });
});
