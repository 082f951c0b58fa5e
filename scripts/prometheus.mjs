import { bootstrap } from "./lib/bootstrap.mjs";
import { runScript } from "./lib/stop-error.mjs";

// `npm run prometheus`: fetches Prometheus if it is not there, then packages/cli/src/prometheus/main.ts. `-- --help` lists the flags.
await runScript(async () => {
  const flags = process.argv.slice(2);
  const isHelp = flags.includes("--help") || flags.includes("-h");
  const tools = await bootstrap({ need: isHelp ? ["deps"] : ["deps", "prometheus"] });
  return tools.runNode("packages/cli/src/prometheus/main.ts", flags);
});
