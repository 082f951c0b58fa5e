import { join } from "node:path";
import { bootstrap } from "./lib/bootstrap.mjs";
import { CACHE, ROOT, SIDECAR_BINARY } from "./lib/paths.mjs";
import { handOver } from "./lib/processes.mjs";
import { runScript } from "./lib/stop-error.mjs";

// `npm run oracle [-- --only tiny|smollm2]`: compares the engine with PyTorch and transformers. `-- --record` writes the fixtures anew that
// `npm test` compares with. A whole comparison is written to docs/results/oracle.md.
await runScript(async () => {
  const args = process.argv.slice(2);
  const isRecord = args.includes("--record");
  const isHelp = args.includes("--help") || args.includes("-h");
  const need = isRecord || isHelp ? ["python:oracle"] : ["deps", "sidecar", "model:smollm2", "python:oracle"];
  const tools = await bootstrap({ need });
  if (isRecord) return handOver(tools.python, [join(ROOT, "models/oracle/record.py")], { cwd: ROOT });
  const flags = [
    "--sidecar",
    SIDECAR_BINARY,
    "--smollm2",
    join(CACHE, "models/smollm2"),
    "--work",
    join(CACHE, "oracle"),
  ];
  const results = ["--results", join(ROOT, "docs/results/oracle.md")];
  return handOver(tools.python, [join(ROOT, "models/oracle/compare.py"), ...flags, ...results, ...args], { cwd: ROOT });
});
