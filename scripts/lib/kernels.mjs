import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { CACHE, SIDECAR_DIR } from "./paths.mjs";
import { findProgram, run } from "./processes.mjs";
import { ensurePythonEnvironment } from "./python-environment.mjs";
import { digestOfFiles, isStamped, writeStamp } from "./stamp.mjs";
import { StopError } from "./stop-error.mjs";

const SOURCES = join(SIDECAR_DIR, "kernels");

/** Where the compiled kernels lie: NAME.fatbin for each NAME.cu. */
export const KERNELS = join(CACHE, "kernels");

/** Machine code for the A100, the L40S and RTX 40, and the H100; PTX for what comes later. */
const TARGETS = [
  ["compute_80", "sm_80"],
  ["compute_89", "sm_89"],
  ["compute_90a", "sm_90a"],
  ["compute_80", "compute_80"],
];

/** Kernels that run once a step or more rarely, where a few spilled registers cost nothing. */
const COLD = new Set(["rope_table", "sample_typical"]);

/** Compiles what changed. Answers with `{ kernels, spilling }`: resources by kernel and architecture, and names of hot ones that spill. */
export async function compileKernels(say) {
  const { nvcc, origin } = await findCompiler(say);
  mkdirSync(KERNELS, { recursive: true });
  const names = readdirSync(SOURCES)
    .filter((file) => file.endsWith(".cu"))
    .map((file) => file.slice(0, -".cu".length))
    .sort();
  // A header may be part of any kernel, so that a change of one compiles all.
  const headers = digestOfFiles(
    SOURCES,
    readdirSync(SOURCES).filter((file) => file.endsWith(".cuh")),
  );
  say(`nvcc from ${origin}: ${names.length} files for ${TARGETS.map(([, code]) => code).join(", ")}`);
  const queue = [...names];
  const reports = new Map();
  const work = async () => {
    for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
      reports.set(name, await compile(nvcc, name, `${origin} ${headers} ${digestOfFiles(SOURCES, [`${name}.cu`])}`));
    }
  };
  await Promise.all(Array.from({ length: cpus().length }, work));
  const kernels = names.flatMap((name) => parseResources(reports.get(name)));
  const spilling = kernels
    .filter(({ name, spillBytes }) => spillBytes > 0 && !COLD.has(name))
    .map(({ name, architecture }) => `${name} (${architecture})`);
  return { kernels, spilling };
}

async function findCompiler(say) {
  const found = findProgram("nvcc");
  if (found !== undefined) return { nvcc: found, origin: "the PATH" };
  const python = await ensurePythonEnvironment("cuda", say);
  const library = join(dirname(dirname(python)), "lib");
  for (const version of readdirSync(library)) {
    const nvcc = findProgram("nvcc", [join(library, version, "site-packages/nvidia/cu13/bin")]);
    if (nvcc !== undefined) return { nvcc, origin: "PyPI" };
  }
  throw new StopError(`nvcc is neither on the PATH nor below ${library}`);
}

/** Compiles one file unless its result is of these sources; answers with what ptxas said. */
async function compile(nvcc, name, stamp) {
  const [fatbin, reportPath] = [join(KERNELS, `${name}.fatbin`), join(KERNELS, `${name}.txt`)];
  if (isStamped(`${fatbin}.stamp`, stamp)) return readFileSync(reportPath, "utf8");
  const targets = TARGETS.flatMap(([arch, code]) => ["-gencode", `arch=${arch},code=${code}`]);
  const lines = [];
  const flags = [
    "-std=c++20",
    "-O3",
    "--fatbin",
    ...targets,
    "-Xptxas",
    "-v",
    "-o",
    fatbin,
    join(SOURCES, `${name}.cu`),
  ];
  const { code, output } = await run(nvcc, flags, { cwd: SOURCES, onLine: (line) => lines.push(line) });
  if (code !== 0) throw new StopError(`nvcc ${name}.cu failed with code ${code}:\n${output}`);
  writeFileSync(reportPath, lines.join("\n"));
  writeStamp(`${fatbin}.stamp`, stamp);
  return lines.join("\n");
}

/** Registers, spills and shared memory of each kernel from `ptxas -v`. */
export function parseResources(report) {
  const kernels = [];
  for (const line of report.split("\n")) {
    const entry = /Compiling entry function '(\w+)' for '(\w+)'/.exec(line);
    if (entry !== null)
      kernels.push({ name: entry[1], architecture: entry[2], registers: 0, spillBytes: 0, sharedBytes: 0 });
    const current = kernels.at(-1);
    if (current === undefined) continue;
    // Device functions have lines of their own before the next entry; only what comes before `Used` is the kernel's.
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spills !== null && current.registers === 0) current.spillBytes = Number(spills[1]) + Number(spills[2]);
    const used = /Used (\d+) registers/.exec(line);
    if (used !== null) current.registers = Number(used[1]);
    const shared = /(\d+) bytes smem/.exec(line);
    if (shared !== null) current.sharedBytes = Number(shared[1]);
  }
  return kernels;
}

/** One line a kernel: registers by architecture, spilled bytes, static shared memory. */
export function table(kernels) {
  const architectures = [...new Set(kernels.map(({ architecture }) => architecture))];
  const names = [...new Set(kernels.map(({ name }) => name))].sort();
  const cell = (name, architecture) => {
    const found = kernels.find((kernel) => kernel.name === name && kernel.architecture === architecture);
    if (found === undefined) return "–";
    return found.spillBytes === 0 ? `${found.registers}` : `${found.registers} (${found.spillBytes} B spilled)`;
  };
  const rows = names.map((name) => [name, ...architectures.map((architecture) => cell(name, architecture))]);
  const all = [["registers", ...architectures], ...rows];
  const widths = all[0].map((_, column) => Math.max(...all.map((row) => row[column].length)));
  return `${all.map((row) => row.map((text, column) => text.padEnd(widths[column])).join("  ")).join("\n")}\n`;
}
