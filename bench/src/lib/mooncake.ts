import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { REPOSITORY } from "./report.ts";
import { output, startUntilLine } from "./run.ts";

export interface MooncakePull {
  readonly bytes: number;
  readonly gb_per_s: number;
}

export interface Mooncake {
  /** A new process reads each size once to warm up and then some times, of which the median counts. */
  read(): Promise<readonly MooncakePull[]>;
  stop(): void;
}

/** What the engine calls of the CUDA driver when it looks for GPUs. */
const DRIVER_CALLS = `CtxGetDevice CtxSetCurrent DeviceGet DeviceGetAttribute DevicePrimaryCtxRelease_v2 DevicePrimaryCtxRetain GetErrorName
GetErrorString Init MemAddressFree MemAddressReserve MemCreate MemExportToShareableHandle MemGetAddressRange_v2 MemGetAllocationGranularity
MemGetHandleForAddressRange MemImportFromShareableHandle MemMap MemRelease MemSetAccess MemUnmap PointerGetAttribute PointerSetAttribute`;
/** CUDA_ERROR_NO_DEVICE. */
const NO_DEVICE = 100;

/** Mooncake's Transfer Engine from PyPI in `.cache/peers`, serving as many bytes as the largest size; undefined where it cannot run. */
export async function startMooncake(sizes: readonly number[], repetitions: number): Promise<Mooncake | undefined> {
  const environment = join(REPOSITORY, ".cache", "peers");
  const python = join(environment, "bin", "python");
  if (!existsSync(python)) return undefined;
  const directory = mkdtempSync(join(tmpdir(), "kvasir-bench-"));
  try {
    const libraries = [cudaRuntimeOf(environment), ...(await makeDriver(directory))];
    const LD_LIBRARY_PATH = [...libraries, process.env.LD_LIBRARY_PATH ?? ""].join(delimiter);
    const env = { ...process.env, LD_LIBRARY_PATH, MC_LOG_LEVEL: "ERROR" };
    const script = join(REPOSITORY, "bench", "baselines", "mooncake_read.py");
    const serve = [script, "serve", String(Math.max(...sizes))];
    const { line, child } = await startUntilLine(python, serve, { env, showErrors: false });
    const fetch = [script, "fetch", ...line.split(" "), String(repetitions), ...sizes.map(String)];
    return {
      read: async () => {
        const text = await output(python, fetch, undefined, env);
        return JSON.parse(text.slice(text.lastIndexOf("[{"))) as readonly MooncakePull[];
      },
      stop: () => {
        child.stdin?.end();
        rmSync(directory, { recursive: true });
      },
    };
  } catch (error) {
    process.stderr.write(`Mooncake's Transfer Engine does not run here: ${String(error)}\n`);
    rmSync(directory, { recursive: true });
    return undefined;
  }
}

function cudaRuntimeOf(environment: string): string {
  const lib = join(environment, "lib");
  const version = readdirSync(lib).find((name) => name.startsWith("python3")) ?? "";
  return join(lib, version, "site-packages", "nvidia", "cuda_runtime", "lib");
}

/** Where there is no CUDA driver: a library that says so to every call, without which the engine cannot be loaded. */
async function makeDriver(directory: string): Promise<readonly string[]> {
  if (existsSync("/dev/nvidia0")) return [];
  const source = join(directory, "driver.c");
  const calls = DRIVER_CALLS.split(/\s+/).map((name) => `int cu${name}(void) { return ${NO_DEVICE}; }`);
  writeFileSync(source, calls.join("\n"));
  await output("cc", ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", join(directory, "libcuda.so.1"), source]);
  return [directory];
}
