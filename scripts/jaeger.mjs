import { bootstrap } from "./lib/bootstrap.mjs";
import { runScript } from "./lib/stop-error.mjs";

// `npm run jaeger`: builds Jaeger if it is not there, then packages/cli/src/jaeger/main.ts. `npm run jaeger -- --help` lists the flags.
await runScript(async () => {
  const flags = process.argv.slice(2);
  const isHelp = flags.includes("--help") || flags.includes("-h");
  const tools = await bootstrap({ need: isHelp ? ["deps"] : ["deps", "jaeger"] });
  return tools.runNode("packages/cli/src/jaeger/main.ts", flags);
});
