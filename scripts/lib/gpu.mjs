import { spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { compileKernels, KERNELS } from "./kernels.mjs";
import { CACHE, ROOT, SIDECAR_DIR, SIDECAR_TARGET } from "./paths.mjs";
import { findProgram, run } from "./processes.mjs";
import { crateProgress, ensureRust } from "./sidecar-build.mjs";
import { StopError } from "./stop-error.mjs";

/** What travels to a GPU machine: the programs, the compiled kernels, and a small model where there is one. */
const PACK = join(CACHE, "gpu");
const PROGRAMS = ["kvasir-gpu", "kvasir-sidecar", "kvasir-sidecar-simulated"];
const MODEL = join(CACHE, "models/smollm2");
const RESULTS = join(ROOT, "docs/results/gpu.md");
const RUN = join(ROOT, "scripts/gpu-run.sh");
const COMMANDS = ["pack", "check", "bench", "cluster", "all", "simulate", "page"];

export async function runGpu(args, say) {
  const [command = "all", ...flags] = args;
  if (!COMMANDS.includes(command)) throw new StopError(`there is no ${command}; npm run gpu -- ${COMMANDS.join("|")}`);
  if (command === "pack") {
    await pack(say);
    return 0;
  }
  if (command === "page") return writePage(flags[0], say);
  const simulates = command === "simulate";
  if (!simulates && spawnSync("nvidia-smi").status !== 0) {
    say("no GPU here: nvidia-smi shows none; nothing was checked and nothing measured");
    return 1;
  }
  if (!PROGRAMS.every((program) => existsSync(join(PACK, program)))) await pack(say);
  if (command === "all" || simulates) {
    const folder = flags[0] ?? join(PACK, simulates ? "simulated" : "out");
    const { code } = await run("sh", [RUN, folder, ...(simulates ? ["--simulate"] : [])], { onLine: say });
    return simulates ? code : code || writePage(folder, say);
  }
  const packed = ["--kernels", join(PACK, "kernels"), "--sidecar", join(PACK, "kvasir-sidecar"), ...flags];
  const model = command === "check" && existsSync(join(PACK, "model")) ? ["--model", join(PACK, "model")] : [];
  return (await run(join(PACK, "kvasir-gpu"), [command, ...packed, ...model], { onLine: say })).code;
}

async function pack(say) {
  const cargo = await ensureRust();
  const { spilling } = await compileKernels(say);
  if (spilling.length > 0) throw new StopError(`spilled registers: ${spilling.join(", ")}`);
  const flags = ["build", "--release", "--locked", ...PROGRAMS.flatMap((program) => ["--bin", program])];
  const { code, output } = await run(cargo, flags, { cwd: SIDECAR_DIR, onLine: crateProgress(say) });
  if (code !== 0) throw new StopError(`cargo build failed with code ${code}:\n${output}`);
  rmSync(PACK, { recursive: true, force: true });
  mkdirSync(join(PACK, "kernels"), { recursive: true });
  const strip = findProgram("strip");
  for (const program of PROGRAMS) {
    const path = join(PACK, program);
    copyFileSync(join(SIDECAR_TARGET, "release", program), path);
    if (strip !== undefined) await run(strip, [path]);
    chmodSync(path, 0o755);
  }
  for (const file of readdirSync(KERNELS).filter((name) => name.endsWith(".fatbin"))) {
    copyFileSync(join(KERNELS, file), join(PACK, "kernels", file));
  }
  const carriesModel = existsSync(MODEL) && process.env.KVASIR_GPU_MODEL === "1";
  if (carriesModel) cpSync(MODEL, join(PACK, "model"), { recursive: true, dereference: true });
  say(
    `packed: ${PACK}${carriesModel ? "" : " (random weights in smollm2's shape; KVASIR_GPU_MODEL=1 takes the model itself along)"}`,
  );
}

/** Reads what scripts/gpu-run.sh wrote, and writes the page of results. */
function writePage(folder, say) {
  if (folder === undefined) throw new StopError("which folder? npm run gpu -- page FOLDER, of scripts/gpu-run.sh");
  const read = (name) => {
    const path = join(folder, name);
    return existsSync(path) ? readFileSync(path, "utf8").trim() : "";
  };
  const part = (name) => ({
    code: Number(read(`${name}.code`) || 1),
    text: read(`${name}.txt`),
    error: read(`${name}.err`),
  });
  const facts = { date: read("date.txt"), before: read("before.txt"), after: read("after.txt") };
  const parts = { check: part("check"), bench: part("bench"), cluster: part("cluster"), baseline: part("baseline") };
  writeFileSync(RESULTS, page({ ...facts, ...parts }));
  say(`written: ${RESULTS}`);
  return 0;
}

/** The page of results. */
export function page({ date, before, after, check, bench, cluster, baseline }) {
  const lines = check.text.split("\n");
  const count = (word) => lines.filter((line) => line.startsWith(word)).length;
  const failed = lines.filter((line) => line.startsWith("FAILED"));
  const told = ({ code, text, error }) => {
    const why = error.split("\n").findLast((line) => line !== "") ?? "it said nothing";
    return code === 0 ? text : `${text}\n\nEnded with code ${code}: ${why}`;
  };
  return `# The kernels on a GPU

\`sh scripts/gpu-run.sh\`, ${date}. Before: ${before || "not read"}. After: ${after || "not read"} (name, driver, SM clock, memory clock, power,
temperature, memory used). Kernels: medians of 15 device-timed runs; the ceiling of a kernel is the larger of its bytes at the copy's rate and
its operations at the product's rate, both measured in the same run. Shapes are Llama-3-8B's. Whole models: wall time of steps with graphs and
one step always in flight.

Conformance suite: ${count("ok ")} cases agree, ${failed.length} do not.
${failed.map((line) => `\n- ${line}`).join("")}

## Kernels and whole models

${told(bench)}

## transformers in the same run

${told(baseline)}

## Two sidecars on one GPU

A prompt's KV from sidecar to sidecar over gRPC and loopback: while it is computed, and once more when all is there.

${told(cluster)}
`;
}
