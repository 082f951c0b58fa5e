import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { findProgram, run } from "./processes.mjs";
import { StopError } from "./stop-error.mjs";

/** Installs one npm package, exact version, into `folder/node_modules`. */
export async function fetchNpmPackage(folder, name, version) {
  mkdirSync(folder, { recursive: true });
  // A manifest of its own: without one, npm would climb to the repository's.
  writeFileSync(join(folder, "package.json"), `${JSON.stringify({ private: true })}\n`);
  const { command, args } = npmCommand();
  const flags = [
    "install",
    "--prefix",
    folder,
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--loglevel",
    "error",
  ];
  const { code, output } = await run(command, [...args, ...flags, "--save-exact", `${name}@${version}`], {
    cwd: folder,
  });
  if (code !== 0) throw new StopError(`npm could not install ${name}@${version}: ${output}`);
}

fetchNpmPackage.isThere = (folder, name, version) => {
  try {
    const manifest = readFileSync(join(folder, "node_modules", name, "package.json"), "utf8");
    return JSON.parse(manifest).version === version;
  } catch {
    return false;
  }
};

function npmCommand() {
  // Under `npm run`, the npm that runs us; else the one on the PATH or beside this Node.
  const running = process.env.npm_execpath;
  if (running?.endsWith("npm-cli.js")) return { command: process.execPath, args: [running] };
  const found = findProgram("npm", [dirname(process.execPath)]);
  if (found === undefined) throw new StopError("npm is missing; on Debian: apt-get install npm");
  return { command: found, args: [] };
}
