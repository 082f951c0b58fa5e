import { existsSync } from "node:fs";
import { join } from "node:path";
import { bootstrap } from "./lib/bootstrap.mjs";
import { CACHE } from "./lib/paths.mjs";
import { runScript } from "./lib/stop-error.mjs";

// `npm run model -- NAME`: fetches or imports a model into .cache/models; without a name it lists what is there.
await runScript(async () => {
  const args = process.argv.slice(2);
  const needsPip = args.includes("smollm2") && !existsSync(join(CACHE, "models/smollm2/config.json"));
  const tools = await bootstrap({ need: needsPip ? ["deps", "pip"] : ["deps"] });
  return tools.runNode("packages/cli/src/model.ts", args);
});
