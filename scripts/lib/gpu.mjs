import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, cpSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { compileKernels, KERNELS } from "./kernels.mjs";
import { CACHE, ROOT, SIDECAR_DIR, SIDECAR_TARGET } from "./paths.mjs";
import { findProgram, run } from "./processes.mjs";
import { crateProgress, ensureRust } from "./sidecar-build.mjs";
import { StopError } from "./stop-error.mjs";

/** What travels to a GPU machine: the program, the compiled kernels, and a small model where there is one. */
const PACK = join(CACHE, "gpu");
const PROGRAM = join(PACK, "kvasir-gpu");
const MODEL = join(CACHE, "models/smollm2");
const RESULTS = join(ROOT, "docs/results/gpu.md");
const COMMANDS = ["pack", "check", "bench", "all"];

export async function runGpu(args, say) {
  const [command = "all", ...flags] = args;
  if (!COMMANDS.includes(command)) throw new StopError(`there is no ${command}; npm run gpu -- ${COMMANDS.join("|")}`);
  if (command === "pack") {
    await pack(say);
    return 0;
  }
  const gpu = describeGpu();
  if (gpu === undefined) {
    say("no GPU here: nvidia-smi shows none; nothing was checked and nothing measured");
    return 1;
  }
  say(`GPU: ${gpu}`);
  if (!existsSync(PROGRAM)) await pack(say);
  const env = { ...process.env, LD_LIBRARY_PATH: libraries() };
  const call = async (name, more) => {
    const lines = [];
    const onLine = (line) => {
      lines.push(line);
      say(line);
    };
    const packed = ["--kernels", join(PACK, "kernels"), ...more, ...flags];
    const { code } = await run(PROGRAM, [name, ...packed], { env, onLine });
    return { code, lines };
  };
  const model = join(PACK, "model");
  const checked = command === "bench" ? undefined : await call("check", existsSync(model) ? ["--model", model] : []);
  const measured = command === "check" ? undefined : await call("bench", []);
  if (measured !== undefined && measured.code === 0) {
    writeFileSync(RESULTS, page({ gpu, after: describeGpu(), date: new Date(), checked, measured }));
    say(`written: ${RESULTS}`);
  }
  return [checked, measured].some((result) => result !== undefined && result.code !== 0) ? 1 : 0;
}

async function pack(say) {
  const cargo = await ensureRust();
  const { spilling } = await compileKernels(say);
  if (spilling.length > 0) throw new StopError(`spilled registers: ${spilling.join(", ")}`);
  const flags = ["build", "--release", "--locked", "-p", "kvasir-simt", "--bin", "kvasir-gpu"];
  const { code, output } = await run(cargo, flags, { cwd: SIDECAR_DIR, onLine: crateProgress(say) });
  if (code !== 0) throw new StopError(`cargo build failed with code ${code}:\n${output}`);
  rmSync(PACK, { recursive: true, force: true });
  mkdirSync(join(PACK, "kernels"), { recursive: true });
  copyFileSync(join(SIDECAR_TARGET, "release/kvasir-gpu"), PROGRAM);
  const strip = findProgram("strip");
  if (strip !== undefined) await run(strip, [PROGRAM]);
  chmodSync(PROGRAM, 0o755);
  for (const file of readdirSync(KERNELS).filter((name) => name.endsWith(".fatbin"))) {
    copyFileSync(join(KERNELS, file), join(PACK, "kernels", file));
  }
  const carriesModel = existsSync(MODEL) && process.env.KVASIR_GPU_MODEL === "1";
  if (carriesModel) cpSync(MODEL, join(PACK, "model"), { recursive: true, dereference: true });
  say(
    `packed: ${PACK}${carriesModel ? "" : " (random weights in smollm2's shape; KVASIR_GPU_MODEL=1 takes the model itself along)"}`,
  );
}

/** Name, driver, clocks and power as nvidia-smi tells them; undefined without a GPU. */
function describeGpu() {
  const fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.used";
  const { status, stdout } = spawnSync("nvidia-smi", [`--query-gpu=${fields}`, "--format=csv,noheader"], {
    encoding: "utf8",
  });
  return status === 0 && stdout.trim() !== "" ? stdout.trim().split("\n")[0] : undefined;
}

/** Where cuBLASLt may lie: the system's places, and what PyTorch brought. */
function libraries() {
  const { status, stdout } = spawnSync(
    "python3",
    ["-c", "import nvidia, os; print(':'.join(os.path.join(p, 'cu13', 'lib') for p in nvidia.__path__))"],
    { encoding: "utf8" },
  );
  const found = status === 0 ? [stdout.trim()] : [];
  const places = [...found, "/usr/local/cuda/lib64", process.env.LD_LIBRARY_PATH ?? ""];
  return places.filter((place) => place !== "").join(delimiter);
}

/** The page of results. */
export function page({ gpu, after, date, checked, measured }) {
  const suite =
    checked === undefined
      ? "The conformance suite did not run in this call."
      : `Conformance suite: ${checked.lines.filter((line) => line.startsWith("ok ")).length} cases agree, ${checked.lines.filter((line) => line.startsWith("FAILED")).length} do not.`;
  return `# The kernels on a GPU

\`npm run gpu -- bench\`, ${date.toISOString().slice(0, 16).replace("T", " ")} UTC. Before: ${gpu}. After: ${after ?? "not read"} (name, driver,
SM clock, memory clock, power, temperature, memory used). Medians of 15 device-timed runs; the ceiling of a kernel is the larger of its bytes
at the copy's rate and its operations at the product's rate, both measured in the same run. Shapes are Llama-3-8B's.

${suite}

${measured.lines.join("\n")}
`;
}
