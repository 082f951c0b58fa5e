import { existsSync, mkdirSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { ensureDependencies, ensurePnpm } from "./dependencies.mjs";
import { ensureJaeger } from "./jaeger.mjs";
import { withLock } from "./lock.mjs";
import { ensureNode } from "./node-runtime.mjs";
import { CACHE, ROOT, SIDECAR_BINARY } from "./paths.mjs";
import { findProgram, handOver, run } from "./processes.mjs";
import { ensurePrometheus } from "./prometheus.mjs";
import { ensurePip, installDebianPackages } from "./python.mjs";
import { ensurePythonEnvironment } from "./python-environment.mjs";
import { ensureRedisServer, findRunningRedis } from "./redis.mjs";
import { step } from "./report.mjs";
import { ensureRust, ensureSidecar } from "./sidecar-build.mjs";
import { StopError } from "./stop-error.mjs";

/** What Debian packs, and what it means when it cannot be had. Without what benches compare with they run and leave the figures out. */
const FIGURES_MISSING = "not there; its figures will be missing";
const DEBIAN_PARTS = {
  "c++": {
    ...{ packages: ["g++"], isThere: () => findProgram("c++") !== undefined },
    without: "not there; the crate kvasir-simt will not compile: install a C++ compiler that is called c++",
  },
  iperf3: { packages: ["iperf3"], isThere: () => findProgram("iperf3") !== undefined, without: FIGURES_MISSING },
  rdma: {
    ...{ packages: ["libibverbs1", "librdmacm1"], isThere: () => isLibraryThere("librdmacm.so.1") },
    without: FIGURES_MISSING,
  },
};

/**
 * Sets up what a command needs, each part only if it is missing or out of date, and says so step by step.
 *
 * `need`: any of `node`, `deps`, `rust`, `sidecar`, `redis` (a running one, or a program to start), `redis-server` (a program, for whoever
 * must not touch a running one), `pip`, `model:tiny`, `model:smollm2`, `python:NAME` (one of the environments of python-environment.mjs),
 * `c++`, `iperf3`, `rdma` (libraries that Mooncake is linked against), `jaeger` and `prometheus` (their programs), `jaeger?` and `prometheus?` (the
 * same, but what needs them later is told why they are
 * missing). What a part stands on comes with it. Answers with a `Toolbox`.
 * Throws StopError with one line when a person has to do something.
 */
export async function bootstrap({ need }) {
  const wanted = new Set(need);
  const models = need.filter((name) => name.startsWith("model:")).map((name) => name.slice("model:".length));
  if (models.length > 0) wanted.add("deps");
  if (wanted.has("deps")) wanted.add("node");
  if (wanted.has("sidecar")) wanted.add("rust");
  if (models.includes("smollm2") && !existsSync(join(CACHE, "models/smollm2/config.json"))) wanted.add("pip");

  mkdirSync(CACHE, { recursive: true });
  const toolbox = new Toolbox();
  const say = (line) => process.stdout.write(`${line}\n`);
  await withLock(CACHE, "setup", say, async () => {
    if (wanted.has("node")) {
      await step("node", async (progress) => {
        const { path, remark } = await ensureNode(progress);
        toolbox.useNode(path);
        return remark;
      });
    }
    if (wanted.has("deps")) {
      let pnpm = "";
      await step("pnpm", async (progress) => {
        pnpm = await ensurePnpm(progress);
      });
      await step("dependencies", (progress) => ensureDependencies(pnpm, toolbox.env, progress));
    }
    if (wanted.has("rust")) {
      await step("rust", async () => {
        toolbox.useCargo(await ensureRust());
      });
    }
    if (wanted.has("sidecar")) await step("sidecar", (progress) => ensureSidecar(toolbox.cargo, progress));
    if (wanted.has("redis") || wanted.has("redis-server")) {
      await step("redis", async (progress) => {
        const url = wanted.has("redis-server") ? undefined : await findRunningRedis();
        if (url === undefined) return toolbox.useRedisServer(await ensureRedisServer(progress));
        return toolbox.useRedisUrl(url);
      });
    }
    if (wanted.has("pip")) await step("pip", (progress) => ensurePip(progress));
    for (const name of need.filter((part) => part.startsWith("python:"))) {
      await step(name, async (progress) => {
        toolbox.python = await ensurePythonEnvironment(name.slice("python:".length), progress);
      });
    }
    for (const [name, { packages, isThere, without }] of Object.entries(DEBIAN_PARTS)) {
      if (!wanted.has(name) || isThere()) continue;
      await step(name, async (progress) => ((await installDebianPackages(packages, progress)) ? undefined : without));
    }
    const others = { jaeger: ["KVASIR_JAEGER", ensureJaeger], prometheus: ["KVASIR_PROMETHEUS", ensurePrometheus] };
    for (const [name, [variable, ensure]] of Object.entries(others)) {
      if (wanted.has(name)) {
        await step(name, async (progress) => toolbox.useProgram(variable, await ensure(progress)));
      } else if (wanted.has(`${name}?`)) {
        await step(name, (progress) =>
          ensure(progress).then(
            (path) => toolbox.useProgram(variable, path),
            (error) => toolbox.lackProgram(variable, error),
          ),
        );
      }
    }
    for (const model of models) await step(`model ${model}`, (progress) => ensureModel(toolbox, model, progress));
  });
  return toolbox;
}

/** The programs that were set up, and the environment in which to run them. */
class Toolbox {
  node = process.execPath;
  cargo = "cargo";
  python = undefined;
  redisUrl = undefined;
  env = { ...process.env, KVASIR_CACHE: CACHE, KVASIR_SIDECAR_BINARY: SIDECAR_BINARY };

  useNode(path) {
    this.node = path;
    this.#prependPath(join(ROOT, "node_modules/.bin"));
    this.#prependPath(dirname(path));
  }

  useCargo(path) {
    this.cargo = path;
    this.#prependPath(dirname(path));
  }

  useRedisServer(path) {
    this.env.KVASIR_REDIS_SERVER = path;
    return path;
  }

  useProgram(variable, path) {
    this.env[variable] = path;
    return path;
  }

  /** The tests that need it fail with this line. */
  lackProgram(variable, error) {
    this.env[`${variable}_MISSING`] = error.message;
    return `missing: ${error.message}`;
  }

  useRedisUrl(url) {
    this.redisUrl = url;
    this.env.REDIS_URL = url;
    return `using ${url.replace(/\/\/[^@/]*@/, "//")}`;
  }

  /** Runs a TypeScript or JavaScript file of the repository in the terminal; answers with its exit code. */
  runNode(file, args = []) {
    return handOver(this.node, [join(ROOT, file), ...args], { cwd: ROOT, env: this.env });
  }

  #prependPath(folder) {
    this.env.PATH = `${folder}${delimiter}${this.env.PATH ?? ""}`;
  }
}

async function ensureModel(toolbox, name, progress) {
  const { code, output } = await run(toolbox.node, [join(ROOT, "packages/cli/src/ensure-model.ts"), name, CACHE], {
    cwd: ROOT,
    env: toolbox.env,
    onLine: progress,
  });
  if (code !== 0) throw new StopError(`model ${name}: ${output}`);
}

function isLibraryThere(name) {
  const folders = ["/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
  return folders.some((folder) => existsSync(join(folder, name)));
}
