import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { compileKernels, KERNELS } from "./kernels.mjs";
import { CACHE, ROOT, SIDECAR_DIR, SIDECAR_TARGET } from "./paths.mjs";
import { findProgram, run } from "./processes.mjs";
import { crateProgress, ensureRust } from "./sidecar-build.mjs";
import { StopError } from "./stop-error.mjs";

/** What travels to a GPU machine: one archive, and for dry runs the sidecar whose GPUs are simulated. */
export const PACK = join(CACHE, "gpu");
export const ARCHIVE = join(PACK, "kvasir.tar.xz");
const SIMULATED = join(CACHE, "gpu-simulated/kvasir-sidecar");
const PROGRAMS = ["kvasir-gpu", "kvasir-sidecar", "kvasir-sidecar-simulated"];
/** What starts a cluster and loads it; what these need comes with them. */
const ENTRIES = ["services/gateway", "services/router", "services/prefill", "services/decode", "packages/cli"];
/** What a package has that no service runs: its own dependencies (they are linked), tests, types, and programs of other machines. */
const LEFT_OUT = [
  /^node_modules$/,
  /\.test\.ts$|\.map$|\.d\.[cm]?ts$/,
  /\.(android|darwin|win32|linux-arm|linux-x64-musl)[^/]*\.node$/,
];
/** Dependencies of dependencies that generate code, and run nothing. */
const COMPILERS = ["typescript"];
/** So that archive and repository together stay below what such machines take: 64 MiB. */
const ARCHIVE_MAX = 54 << 20;

/** Builds the archive: programs, kernels, a tokenizer, and Node and Redis with the services that they run. */
export async function pack(say, { node, redis, tokenizer }) {
  const cargo = await ensureRust();
  const { spilling } = await compileKernels(say);
  if (spilling.length > 0) throw new StopError(`spilled registers: ${spilling.join(", ")}`);
  const flags = ["build", "--release", "--locked", ...PROGRAMS.flatMap((program) => ["--bin", program])];
  const { code, output } = await run(cargo, flags, { cwd: SIDECAR_DIR, onLine: crateProgress(say) });
  if (code !== 0) throw new StopError(`cargo build failed with code ${code}:\n${output}`);
  const stage = join(CACHE, "gpu-stage");
  for (const folder of [stage, PACK, dirname(SIMULATED)]) rmSync(folder, { recursive: true, force: true });
  for (const folder of [join(stage, "bin"), join(stage, "kernels"), PACK, dirname(SIMULATED)]) {
    mkdirSync(folder, { recursive: true });
  }
  const built = (name) => join(SIDECAR_TARGET, "release", name);
  await copyProgram(built("kvasir-gpu"), join(stage, "bin/kvasir-gpu"));
  await copyProgram(built("kvasir-sidecar"), join(stage, "bin/kvasir-sidecar"));
  await copyProgram(built("kvasir-sidecar-simulated"), SIMULATED);
  await copyProgram(node, join(stage, "bin/node"));
  await copyWithLibraries(redis, join(stage, "redis"), join(stage, "bin/redis-server"));
  for (const file of readdirSync(KERNELS).filter((name) => name.endsWith(".fatbin"))) {
    copyFileSync(join(KERNELS, file), join(stage, "kernels", file));
  }
  mkdirSync(join(stage, "tokenizer"));
  for (const file of ["tokenizer.json", "tokenizer_config.json"]) {
    copyFileSync(join(tokenizer, file), join(stage, "tokenizer", file));
  }
  copyServices(stage);
  say("compressing");
  const tar = await run("tar", ["-cJf", ARCHIVE, "-C", stage, "."], { env: { ...process.env, XZ_OPT: "-T0 -6" } });
  if (tar.code !== 0) throw new StopError(`tar failed with code ${tar.code}: ${tar.output}`);
  rmSync(stage, { recursive: true });
  const bytes = statSync(ARCHIVE).size;
  const mib = (count) => `${(count / 2 ** 20).toFixed(1)} MiB`;
  if (bytes > ARCHIVE_MAX) throw new StopError(`${ARCHIVE} has ${mib(bytes)}; at most ${mib(ARCHIVE_MAX)} may travel`);
  say(`packed: ${ARCHIVE}, ${mib(bytes)}`);
}

/** Whether there is a pack for a run of this kind. */
export function isPacked(simulates) {
  return existsSync(ARCHIVE) && (!simulates || existsSync(SIMULATED));
}

async function copyProgram(from, to) {
  copyFileSync(from, to);
  chmodSync(to, 0o755);
  const strip = findProgram("strip");
  if (strip !== undefined) await run(strip, [to]);
}

/** A program with all libraries but the system's own, and a script that starts it with them. */
async function copyWithLibraries(program, folder, starter) {
  mkdirSync(folder);
  const file = join(folder, basename(program));
  await copyProgram(realpathSync(program), file);
  const { output } = await run("ldd", [program]);
  for (const [, path] of output.matchAll(/=> (\/\S+)/g)) {
    if (!/^(libc|libm|libdl|librt|libpthread)\.so/.test(basename(path))) {
      copyFileSync(realpathSync(path), join(folder, basename(path)));
    }
  }
  const here = `"$(dirname "$0")/${relative(dirname(starter), folder)}"`;
  const lines = [
    "#!/bin/sh",
    `folder=${here}`,
    `LD_LIBRARY_PATH="$folder" exec "$folder/${basename(program)}" "$@"`,
    "",
  ];
  writeFileSync(starter, lines.join("\n"));
  chmodSync(starter, 0o755);
}

/** The services' sources and dependencies, with the links between them as they are here. */
function copyServices(stage) {
  const root = realpathSync(ROOT);
  const copied = new Set();
  const queue = ENTRIES.map((entry) => join(root, entry));
  const copy = (from) => {
    const isWanted = (path) => !LEFT_OUT.some((pattern) => pattern.test(relative(from, path)));
    cpSync(from, join(stage, relative(root, from)), { recursive: true, filter: isWanted });
  };
  const link = (from) => {
    const target = realpathSync(from);
    const to = join(stage, relative(root, from));
    mkdirSync(dirname(to), { recursive: true });
    if (!existsSync(to)) symlinkSync(relative(dirname(from), target), to);
    queue.push(target);
  };
  for (let folder = queue.pop(); folder !== undefined; folder = queue.pop()) {
    if (copied.has(folder)) continue;
    copied.add(folder);
    copy(folder);
    const { name, dependencies = {} } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    if (folder.includes("/node_modules/")) {
      // A package of the store: what it depends on lies beside it, as links.
      const store = folder.slice(0, -name.length - 1);
      const others = entriesOf(store).filter((entry) => entry !== name && !COMPILERS.includes(entry));
      for (const entry of others) link(join(store, entry));
    } else {
      for (const dependency of Object.keys(dependencies)) link(join(folder, "node_modules", dependency));
    }
  }
  for (const part of ["bench/package.json", "bench/src", "package.json"]) {
    cpSync(join(root, part), join(stage, part), { recursive: true });
  }
  link(join(root, "bench/node_modules/@kvasir/cli"));
}

/** Names of packages in a folder of modules, scopes included. */
function entriesOf(folder) {
  const names = readdirSync(folder).filter((name) => !name.startsWith("."));
  const inScope = (scope) => readdirSync(join(folder, scope)).map((name) => `${scope}/${name}`);
  return names.flatMap((name) => (name.startsWith("@") ? inScope(name) : [name]));
}
