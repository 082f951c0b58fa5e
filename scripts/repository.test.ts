import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { expect, test } from "vitest";

const ROOT = join(import.meta.dirname, "..");
const LINES_MAX = 500;

/** What the code of each package may import from the others. Services → packages → core; nothing imports a service. */
const ARROWS: Readonly<Record<string, readonly string[]>> = {
  "packages/core": [],
  "packages/proto": [],
  "packages/config": ["core"],
  "packages/state": ["core"],
  "packages/telemetry": ["core"],
  "packages/rpc": ["core", "proto"],
  "packages/tokenizer": ["core"],
  "packages/models": ["core", "tokenizer"],
  "packages/worker": ["config", "core", "proto", "rpc", "state", "telemetry"],
  "packages/sim": ["core"],
  "packages/testkit": ["cli", "core", "proto", "rpc"],
  "packages/cli": ["config", "core", "models", "proto", "rpc", "sim", "state", "telemetry", "tokenizer"],
  "services/prefill": ["worker"],
  "services/decode": ["worker"],
  "services/kv-store": ["config", "core", "proto", "rpc", "state", "telemetry", "worker"],
  "services/router": ["config", "core", "proto", "rpc", "state", "telemetry"],
  "services/gateway": ["config", "core", "proto", "rpc", "state", "telemetry", "tokenizer"],
};

/** Tests, and what lies in a folder named `testing`, may use these as well. */
const FOR_TESTS = ["cli", "models", "testkit"];

const files = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], {
  cwd: ROOT,
  encoding: "utf8",
})
  .split("\n")
  .filter((path) => path !== "" && existsSync(join(ROOT, path)));
const read = (path: string) => readFileSync(join(ROOT, path), "utf8");

/** Specifiers of a module's static and dynamic imports. */
function importsOf(path: string): string[] {
  const matches = read(path).matchAll(/(?:\bfrom\s+|\bimport\s*\(?\s*)"([^"]+)"/g);
  return [...matches].map((match) => match[1] ?? "");
}

const isForTests = (path: string) => path.endsWith(".test.ts") || path.includes("/testing/");

test("the table of imports names every package", () => {
  const present = ["packages", "services"].flatMap((parent) =>
    readdirSync(join(ROOT, parent)).map((name) => `${parent}/${name}`),
  );
  const withTypeScript = present.filter((path) => existsSync(join(ROOT, path, "package.json")));
  expect(withTypeScript.sort()).toEqual(Object.keys(ARROWS).sort());
});

test.each(Object.keys(ARROWS))("%s imports what its arrows allow", (home) => {
  const wrong: string[] = [];
  for (const path of files.filter(
    (file) => file.startsWith(`${home}/src/`) && file.endsWith(".ts") && !file.includes("/gen/"),
  )) {
    const allowed = [...(ARROWS[home] ?? []), ...(isForTests(path) ? FOR_TESTS : [])];
    for (const specifier of importsOf(path)) {
      const target = specifier.match(/^@kvasir\/([^/]+)/)?.[1];
      if (target !== undefined && !allowed.includes(target)) wrong.push(`${path} imports ${specifier}`);
      const isOutside =
        specifier.startsWith(".") &&
        relative(join(ROOT, home), resolve(ROOT, dirname(path), specifier)).startsWith("..");
      if (isOutside) wrong.push(`${path} reaches out of its package: ${specifier}`);
    }
  }
  expect(wrong).toEqual([]);
});

test("the core imports nothing but itself", () => {
  const own = files.filter(
    (file) => file.startsWith("packages/core/src/") && file.endsWith(".ts") && !isForTests(file),
  );
  expect(own.length).toBeGreaterThan(10);
  const foreign = own.flatMap((path) =>
    importsOf(path)
      .filter((specifier) => !specifier.startsWith("."))
      .map((specifier) => `${path}: ${specifier}`),
  );
  expect(foreign).toEqual([]);
  expect(JSON.parse(read("packages/core/tsconfig.json")).compilerOptions.types).toEqual([]);
});

test("unsafe Rust lives in the kernels, where a model's file is mapped, and where C is called", () => {
  const sources = files.filter((file) => /^services\/sidecar\/crates\/.*\.rs$/.test(file));
  const isUnsafe = (path: string) => /\bunsafe\s*(\{|fn|impl|extern)/.test(read(path));
  const outside = sources.filter((path) => !path.startsWith("services/sidecar/crates/kernels/") && isUnsafe(path));
  const rest = outside.filter((path) => !path.startsWith("services/sidecar/crates/cuda/src/driver/"));
  expect(rest.sort()).toEqual([
    "services/sidecar/crates/model/src/mapped.rs",
    "services/sidecar/crates/simt/src/device.rs",
  ]);
});

test(`no source file has more than ${LINES_MAX} lines`, () => {
  const sources = files.filter((file) => /\.(ts|mjs|rs|proto|py|cu|cuh|cpp|h)$/.test(file) && !file.includes("/gen/"));
  const long = sources
    .map((path) => ({ path, lines: read(path).split("\n").length }))
    .filter(({ lines }) => lines > LINES_MAX);
  expect(long).toEqual([]);
});

test("dependencies are pinned to one version", () => {
  const manifests = files.filter((file) => file.endsWith("package.json"));
  const loose = manifests.flatMap((path) => {
    const { dependencies = {}, devDependencies = {} } = JSON.parse(read(path));
    const all = Object.entries({ ...dependencies, ...devDependencies } as Record<string, string>);
    return all
      .filter(([, version]) => !/^(workspace:\*|\d+\.\d+\.\d+(-[\w.]+)?)$/.test(version))
      .map(([name, version]) => `${path}: ${name} ${version}`);
  });
  expect(loose).toEqual([]);
});

const pages = files.filter((file) => file.endsWith(".md"));

test.each(pages)("%s: every command exists and every link leads somewhere", (page) => {
  const text = read(page);
  const { scripts } = JSON.parse(read("package.json"));
  for (const [, name] of text.matchAll(/npm run ([a-z]+)/g))
    expect(scripts, `npm run ${name}`).toHaveProperty(name ?? "");
  for (const [, name] of text.matchAll(/npm run bench -- ([a-z][a-z-]*)/g))
    expect(files).toContain(`bench/src/${name}.ts`);
  for (const [, target] of text.matchAll(/\]\(([^)#:\s]+)(?:#[^)]*)?\)/g)) {
    expect(existsSync(resolve(ROOT, dirname(page), target ?? "")), `${page} links to ${target}`).toBe(true);
  }
});

test("no file names a path of the machine it was written on", () => {
  const homes = files.filter(
    (file) => /\.(ts|mjs|rs|py|md|json|yaml|toml|proto|cu|cuh|cpp|h)$/.test(file) && file !== "pnpm-lock.yaml",
  );
  // Composed, so that this file does not find itself.
  const pattern = new RegExp(["/ho" + "me/\\w", "/wo" + "rk/\\w", "/Use" + "rs/\\w"].join("|"));
  expect(homes.filter((path) => pattern.test(read(path)))).toEqual([]);
});
