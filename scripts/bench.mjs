import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { bootstrap } from "./lib/bootstrap.mjs";
import { ROOT } from "./lib/paths.mjs";
import { runScript, StopError } from "./lib/stop-error.mjs";

const COMMON = ["deps", "sidecar", "redis", "model:tiny", "model:smollm2"];

/** What a bench compares with, beyond what every bench needs. */
const BASELINES = {
  dynamo: ["python:dynamo"],
  engine: ["python:engines"],
  gateway: ["python:gateways"],
  "prefix-index": ["python:dynamo"],
  simulator: ["python:dynamo"],
  "kv-pull": ["iperf3", "rdma", "python:mooncake"],
  tracing: ["jaeger"],
};

// `npm run bench -- NAME [FLAGS]`: runs bench/src/NAME.ts.
await runScript(async () => {
  const [name, ...flags] = process.argv.slice(2);
  const names = readdirSync(join(ROOT, "bench/src"))
    .filter((file) => file.endsWith(".ts"))
    .map((file) => file.slice(0, -".ts".length));
  if (name === undefined || name.startsWith("-")) {
    process.stdout.write(`npm run bench -- NAME; there is: ${names.join(", ")}\n`);
    return name === undefined || name === "--help" ? 0 : 2;
  }
  if (!existsSync(join(ROOT, "bench/src", `${name}.ts`))) {
    throw new StopError(`there is no bench ${name}; there is: ${names.join(", ")}`);
  }
  const tools = await bootstrap({ need: [...COMMON, ...(BASELINES[name] ?? [])] });
  return tools.runNode(`bench/src/${name}.ts`, flags);
});
