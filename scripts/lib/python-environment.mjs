import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { CACHE, ROOT } from "./paths.mjs";
import { findProgram, run } from "./processes.mjs";
import { installDebianPackages } from "./python.mjs";
import { digestOfFiles, isStamped, writeStamp } from "./stamp.mjs";
import { StopError } from "./stop-error.mjs";

/** Python environments: a folder below `.cache`, and what is installed there. Those of one folder are installed side by side. */
const ENVIRONMENTS = {
  oracle: {
    folder: "python",
    requirements: "models/oracle/requirements.txt",
    remark: "5 GB, some minutes the first time",
  },
  engines: {
    folder: "python",
    requirements: "bench/baselines/engines.txt",
    remark: "compiles llama.cpp, some minutes the first time",
  },
  dynamo: { folder: "dynamo", requirements: "bench/baselines/dynamo.txt", remark: "" },
  gateways: { folder: "peers", requirements: "bench/baselines/gateways.txt", remark: "" },
  mooncake: { folder: "peers", requirements: "bench/baselines/mooncake.txt", remark: "" },
  cuda: {
    folder: "cuda",
    requirements: "services/sidecar/kernels/compiler.txt",
    remark: "250 MB",
  },
};

/** Makes or completes an environment; answers with its interpreter. */
export async function ensurePythonEnvironment(name, say) {
  const { folder, requirements, remark } = ENVIRONMENTS[name];
  const path = join(CACHE, folder);
  const python = join(path, "bin/python");
  const stampPath = join(path, `.${name}-stamp`);
  const stamp = digestOfFiles(ROOT, [requirements]);
  if (existsSync(python) && isStamped(stampPath, stamp)) return python;
  if (!existsSync(python)) await makeEnvironment(path, say);
  say(`pip install -r ${requirements}${remark && ` (${remark})`}`);
  const flags = [
    "-m",
    "pip",
    "install",
    "--disable-pip-version-check",
    "--no-input",
    "-q",
    "-r",
    join(ROOT, requirements),
  ];
  const { code, output } = await run(python, flags, { cwd: ROOT, onLine: say });
  if (code !== 0) throw new StopError(`pip install -r ${requirements} failed with code ${code}:\n${output}`);
  writeStamp(stampPath, stamp);
  return python;
}

async function makeEnvironment(path, say) {
  mkdirSync(CACHE, { recursive: true });
  const make = async () => {
    const python = findProgram("python3");
    return python === undefined ? { code: 127, output: "python3 is missing" } : run(python, ["-m", "venv", path]);
  };
  const first = await make();
  if (first.code === 0) return;
  // Debian packs venv apart from Python.
  if (await installDebianPackages(["python3-venv", "python3-pip"], say)) {
    const second = await make();
    if (second.code === 0) return;
    throw new StopError(`python3 -m venv failed: ${second.output}`);
  }
  throw new StopError(`python3 -m venv failed; on Debian: apt-get install python3-venv\n${first.output}`);
}
