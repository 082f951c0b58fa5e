import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROOT, SIDECAR_DIR } from "./paths.mjs";
import { run } from "./processes.mjs";

/** The checks of `npm run check`, the longest first: each `{ name, run(): Promise<{ code, output }> }`. */
export function checks(tools) {
  const command = (name, program, args, cwd = ROOT) => ({
    name,
    run: () => run(program, args, { cwd, env: tools.env }),
  });
  // With `--release`, build scripts and macros are shared with the build of the sidecar.
  const clippy = ["clippy", "--release", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
  return [
    command("clippy", tools.cargo, clippy, SIDECAR_DIR),
    command("rustfmt", tools.cargo, ["fmt", "--all", "--check"], SIDECAR_DIR),
    ...typescriptProjects().map((path) => command(`types ${path}`, "tsc", ["-p", path])),
    command("lint", "biome", ["ci", "--colors=off", "."]),
    command("protos", "buf", ["lint"]),
    { name: "generated protos", run: () => compareGenerated(tools) },
  ];
}

/** Every tsconfig of the workspace. */
export function typescriptProjects() {
  const folders = ["packages", "services"].flatMap((parent) =>
    readdirSync(join(ROOT, parent)).map((name) => `${parent}/${name}`),
  );
  return [...folders, "e2e", "bench", "quality"].flatMap((folder) =>
    ["tsconfig.json", "tsconfig.test.json"]
      .map((name) => `${folder}/${name}`)
      .filter((path) => existsSync(join(ROOT, path))),
  );
}

const GENERATED = "packages/proto/src/gen";

/** Generates the protos' code beside the committed one and names the files that differ. */
async function compareGenerated(tools) {
  const fresh = mkdtempSync(join(tmpdir(), "kvasir-protos-"));
  try {
    const generated = await run("buf", ["generate", "--output", fresh], { cwd: ROOT, env: tools.env });
    if (generated.code !== 0) return generated;
    const expected = filesBelow(join(fresh, GENERATED));
    const actual = filesBelow(join(ROOT, GENERATED));
    const names = [...new Set([...expected.keys(), ...actual.keys()])].sort();
    const stale = names.filter((name) => expected.get(name) !== actual.get(name));
    if (stale.length === 0) return { code: 0, output: "" };
    return { code: 1, output: `not what proto/ gives; run buf generate: ${stale.join(", ")}` };
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

function filesBelow(folder) {
  const files = new Map();
  const visit = (path, prefix) => {
    for (const entry of readdirSync(path, { withFileTypes: true })) {
      if (entry.isDirectory()) visit(join(path, entry.name), `${prefix}${entry.name}/`);
      else files.set(`${prefix}${entry.name}`, readFileSync(join(path, entry.name), "utf8"));
    }
  };
  visit(folder, "");
  return files;
}
