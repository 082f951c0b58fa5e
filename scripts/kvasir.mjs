import { bootstrap } from "./lib/bootstrap.mjs";
import { runScript, StopError } from "./lib/stop-error.mjs";

const COMMANDS = {
  import: { file: "packages/cli/src/import.ts", help: "import FILE.gguf DIR   make a model directory of a GGUF file" },
  profile: {
    file: "packages/cli/src/profile.ts",
    help: "profile codec|steps     make a codec profile from texts, or measure a running cluster's steps",
    need: ["sidecar"],
  },
  trace: { file: "packages/cli/src/trace.ts", help: "trace ID               print the timeline of one request" },
  explain: { file: "packages/cli/src/explain.ts", help: "explain ID             say why one request ran where it ran" },
  pins: {
    file: "packages/cli/src/pins.ts",
    help: "pins                   keep prompts in stores, or list what is kept",
  },
  replay: {
    file: "packages/cli/src/replay/main.ts",
    help: "replay TRACE           replay a trace, simulated (--sim) or against a gateway, with a report",
  },
  plan: { file: "packages/cli/src/plan.ts", help: "plan TRACE             find the cluster that serves a trace best" },
  model: { file: "packages/cli/src/model.ts", help: "model [NAME]           fetch a model, or list what is there" },
};

// `npm run kvasir -- COMMAND ...`: the commands that work on files and running clusters.
await runScript(async () => {
  const [name, ...args] = process.argv.slice(2);
  const lines = Object.values(COMMANDS).map(({ help }) => `  ${help}`);
  const usage = `Usage: npm run kvasir -- COMMAND [options]\n\n${lines.join("\n")}\n\nnpm run kvasir -- COMMAND --help shows its options.\n`;
  if (name === undefined || name === "--help" || name === "-h") {
    process.stdout.write(usage);
    return name === undefined ? 2 : 0;
  }
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (command === undefined)
    throw new StopError(`there is no command ${name}; there is: ${Object.keys(COMMANDS).join(", ")}`);
  const tools = await bootstrap({ need: ["deps", ...(command.need ?? [])] });
  return tools.runNode(command.file, args);
});
