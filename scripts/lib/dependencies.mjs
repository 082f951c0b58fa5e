import { readdirSync } from "node:fs";
import { join } from "node:path";
import { fetchNpmPackage } from "./npm.mjs";
import { CACHE, ROOT } from "./paths.mjs";
import { run } from "./processes.mjs";
import { digestOfFiles, isStamped, writeStamp } from "./stamp.mjs";
import { StopError } from "./stop-error.mjs";

const PNPM_VERSION = "12.21.0";

/** pnpm, at one exact version; answers with its program. */
export async function ensurePnpm(say) {
  const folder = join(CACHE, "pnpm");
  if (!fetchNpmPackage.isThere(folder, "pnpm", PNPM_VERSION)) {
    say(`fetching pnpm ${PNPM_VERSION} from npm`);
    await fetchNpmPackage(folder, "pnpm", PNPM_VERSION);
  }
  return join(folder, "node_modules/.bin/pnpm");
}

/** Installs what pnpm-lock.yaml names, unless the last installation was of the same manifests. */
export async function ensureDependencies(pnpm, env, say) {
  const manifests = ["packages", "services"].flatMap((folder) =>
    readdirSync(join(ROOT, folder)).map((name) => join(folder, name, "package.json")),
  );
  const roots = [
    "pnpm-lock.yaml",
    "pnpm-workspace.yaml",
    "package.json",
    "e2e/package.json",
    "bench/package.json",
    "quality/package.json",
  ];
  const stampPath = join(ROOT, "node_modules/.kvasir-stamp");
  const stamp = digestOfFiles(ROOT, [...roots, ...manifests]);
  if (isStamped(stampPath, stamp)) return "up to date";
  say("pnpm install --frozen-lockfile");
  const { code, output } = await run(pnpm, ["install", "--frozen-lockfile", "--reporter", "append-only"], {
    cwd: ROOT,
    // With nobody to ask, pnpm asks nothing.
    env: { ...env, CI: "true" },
  });
  if (code !== 0) throw new StopError(`pnpm install failed with code ${code}:\n${output}`);
  writeStamp(stampPath, stamp);
  return undefined;
}
