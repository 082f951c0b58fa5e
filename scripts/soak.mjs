import { bootstrap } from "./lib/bootstrap.mjs";
import { runScript } from "./lib/stop-error.mjs";

// `npm run soak -- --minutes N --seed S`: a cluster under load whose processes are killed, see e2e/src/soak.ts.
await runScript(async () => {
  const tools = await bootstrap({ need: ["deps", "sidecar", "redis", "model:tiny"] });
  return tools.runNode("e2e/src/soak.ts", process.argv.slice(2));
});
