import { bootstrap } from "./lib/bootstrap.mjs";
import { runScript, StopError } from "./lib/stop-error.mjs";

const MEASUREMENTS = ["codec", "reuse"];

// `npm run quality -- NAME [FLAGS]`: runs quality/src/NAME.ts.
await runScript(async () => {
  const [name, ...flags] = process.argv.slice(2);
  if (name === undefined || name.startsWith("-")) {
    process.stdout.write(`npm run quality -- NAME; there is: ${MEASUREMENTS.join(", ")}\n`);
    return name === undefined ? 2 : 0;
  }
  if (!MEASUREMENTS.includes(name))
    throw new StopError(`there is no measurement ${name}; there is: ${MEASUREMENTS.join(", ")}`);
  const tools = await bootstrap({ need: ["deps", "sidecar", "model:smollm2"] });
  return tools.runNode(`quality/src/${name}.ts`, flags);
});
