import { findProgram, run } from "./processes.mjs";
import { StopError } from "./stop-error.mjs";

/** Runs Debian's `apt-get install` when root; answers whether that went well. */
export async function installDebianPackages(names, say) {
  const apt = findProgram("apt-get");
  if (apt === undefined || process.getuid?.() !== 0) return false;
  say(`apt-get install ${names.join(" ")}`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const first = await run(apt, ["install", "-y", "--no-install-recommends", ...names], { env });
  if (first.code === 0) return true;
  const update = await run(apt, ["update"], { env });
  if (update.code !== 0) return false;
  return (await run(apt, ["install", "-y", "--no-install-recommends", ...names], { env })).code === 0;
}

/** Python 3 with pip (Debian's package when root); answers with the interpreter. */
export async function ensurePip(say) {
  const python = findProgram("python3");
  if (python !== undefined && (await run(python, ["-m", "pip", "--version"])).code === 0) return python;
  if (await installDebianPackages(["python3-pip"], say)) return findProgram("python3") ?? "python3";
  throw new StopError("Python 3 with pip is missing; on Debian: apt-get install python3-pip");
}
