import { bootstrap } from "./lib/bootstrap.mjs";
import { runScript } from "./lib/stop-error.mjs";

// `npm run up`: sets up what is missing, then packages/cli/src/up/main.ts. `npm run up -- --help` lists the flags.
await runScript(async () => {
  const flags = process.argv.slice(2);
  const at = flags.findIndex((flag) => flag === "--model" || flag.startsWith("--model="));
  const model = at < 0 ? "smollm2" : (flags[at].split("=")[1] ?? flags[at + 1]);
  const models = ["smollm2", "tiny"].filter((name) => name === model).map((name) => `model:${name}`);
  const isHelp = flags.includes("--help") || flags.includes("-h");
  const tools = await bootstrap({ need: isHelp ? ["deps"] : ["deps", "sidecar", "redis", ...models] });
  return tools.runNode("packages/cli/src/up/main.ts", flags);
});
