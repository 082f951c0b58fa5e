import { cpus } from "node:os";
import { bootstrap } from "./lib/bootstrap.mjs";
import { checks } from "./lib/checks.mjs";
import { green, red, seconds } from "./lib/report.mjs";
import { runScript } from "./lib/stop-error.mjs";

// `npm run check`: types, lint, protos, clippy, rustfmt. Every check runs, whatever the others say; exit code 1 if any failed.
await runScript(async () => {
  const tools = await bootstrap({ need: ["deps", "rust", "c++"] });
  const queue = checks(tools);
  const failed = [];
  const work = async () => {
    for (let check = queue.shift(); check !== undefined; check = queue.shift()) {
      const start = performance.now();
      const { code, output } = await check.run();
      process.stdout.write(`${code === 0 ? green("✓") : red("✗")} ${check.name} ${seconds(start)}\n`);
      if (code === 0) continue;
      failed.push(check.name);
      const told = output.split("\n").filter((line) => !/^\s*(Compiling|Checking|Downloaded) /.test(line));
      process.stdout.write(`${told.map((line) => `  ${line}\n`).join("")}`);
    }
  };
  await Promise.all(Array.from({ length: Math.min(2, cpus().length) }, work));
  process.stdout.write(failed.length === 0 ? "all checks passed\n" : `failed: ${failed.join(", ")}\n`);
  return failed.length === 0 ? 0 : 1;
});
