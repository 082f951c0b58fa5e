import { existsSync } from "node:fs";
import { join } from "node:path";
import { fetchNpmPackage } from "./npm.mjs";
import { CACHE } from "./paths.mjs";
import { StopError } from "./stop-error.mjs";

const VERSION = "24.21.0";
const PLATFORMS = ["linux-x64", "linux-arm64"];

/** The Node that runs the TypeScript: this one if it can, else Node 24 from npm. Answers with `{ path, remark }`. */
export async function ensureNode(say) {
  if (runsTypeScript(process.versions.node)) return { path: process.execPath, remark: `this one, ${process.version}` };
  const platform = `${process.platform}-${process.arch}`;
  if (!PLATFORMS.includes(platform)) {
    throw new StopError(`Node ${process.version} is too old to run TypeScript; install Node 24 and start again`);
  }
  const name = `node-${platform}`;
  const folder = join(CACHE, "node");
  const path = join(folder, "node_modules", name, "bin/node");
  if (!existsSync(path) || !(await fetchNpmPackage.isThere(folder, name, VERSION))) {
    say(`this Node is ${process.version}: fetching Node ${VERSION} from npm`);
    await fetchNpmPackage(folder, name, VERSION);
  }
  return { path, remark: `v${VERSION}` };
}

/** Whether a Node strips types without a flag: 22.18, 23.6 and up (22.15 to 22.17 ask for one). */
export function runsTypeScript(version) {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  return major >= 24 || (major === 23 && minor >= 6) || (major === 22 && minor >= 18);
}
