import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bootstrap } from "./bootstrap.mjs";
import { isPacked, PACK, pack } from "./gpu-pack.mjs";
import { page } from "./gpu-page.mjs";
import { CACHE, ROOT } from "./paths.mjs";
import { run } from "./processes.mjs";
import { ensureRedisServer } from "./redis.mjs";
import { StopError } from "./stop-error.mjs";

const RESULTS = join(ROOT, "docs/results/gpu.md");
const RUN = join(ROOT, "scripts/gpu-run.sh");
const COMMANDS = ["pack", "all", "simulate", "page"];

/** `npm run gpu -- COMMAND`: see scripts/gpu.mjs. Answers with an exit code. */
export async function runGpu(args, say) {
  const [command = "all", ...flags] = args;
  if (!COMMANDS.includes(command)) throw new StopError(`there is no ${command}; npm run gpu -- ${COMMANDS.join("|")}`);
  if (command === "pack") return packAll(say);
  if (command === "page") return writePage(flags[0], say);
  const simulates = command === "simulate";
  if (!simulates && spawnSync("nvidia-smi").status !== 0) {
    say("no GPU here: nvidia-smi shows none; nothing was checked and nothing measured");
    return 1;
  }
  if (!isPacked(simulates)) await packAll(say);
  const folder = flags[0] ?? join(PACK, simulates ? "simulated" : "out");
  const { code } = await run("sh", [RUN, folder, ...(simulates ? ["--simulate"] : [])], { onLine: say });
  // That a page can be made is tried with simulated figures too; nobody gets one of them.
  if (!simulates) writePage(folder, say);
  else say(`${page(resultsOf(folder)).split("\n").length} lines of a page, thrown away`);
  return code;
}

async function packAll(say) {
  const tools = await bootstrap({ need: ["node", "deps", "model:smollm2"] });
  const redis = await ensureRedisServer(say);
  await pack(say, { node: tools.node, redis, tokenizer: join(CACHE, "models/smollm2") });
  return 0;
}

function resultsOf(folder) {
  const path = join(folder, "results.txt");
  if (!existsSync(path)) throw new StopError(`${path} is not there; scripts/gpu-run.sh writes it`);
  return readFileSync(path, "utf8");
}

/** Makes the page of results from what scripts/gpu-run.sh wrote. */
function writePage(folder, say) {
  if (folder === undefined) throw new StopError("which folder? npm run gpu -- page FOLDER, of scripts/gpu-run.sh");
  writeFileSync(RESULTS, page(resultsOf(folder)));
  say(`written: ${RESULTS}`);
  return 0;
}
