import { existsSync } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { join, relative } from "node:path";
import { defineOptions, runMain } from "@kvasir/config";
import { KNOWN_MODELS, resolveModel } from "@kvasir/models";

const MB = 1e6;

const options = defineOptions("npm run model --", "fetches a model, or lists what is there", {
  model: {
    type: "string",
    env: "KVASIR_MODEL",
    positional: true,
    help: `${KNOWN_MODELS.join(", ")}, or a GGUF file to import. Without it: a list.`,
  },
  cache: {
    type: "string",
    env: "KVASIR_CACHE",
    default: ".cache",
    help: "Directory that keeps models and downloads.",
  },
});

await runMain(options, async ({ model, cache }) => {
  if (model === undefined) {
    process.stdout.write(await listModels(cache));
    return;
  }
  const { directory, servedName } = await resolveModel(model, cache, (line) => process.stdout.write(`${line}\n`));
  process.stdout.write(`${servedName} is in ${shown(directory)}; serve it: npm run up -- --model ${model}\n`);
});

async function listModels(cache: string): Promise<string> {
  const root = join(cache, "models");
  const present = existsSync(root)
    ? (await readdir(root)).filter((name) => existsSync(join(root, name, "config.json")))
    : [];
  const lines: string[] = [];
  for (const name of present.sort()) {
    const size = await sizeOf(join(root, name));
    lines.push(`${name.padEnd(12)} ${(size / MB).toFixed(1).padStart(8)} MB  ${shown(join(root, name))}`);
  }
  for (const name of KNOWN_MODELS.filter((known) => !present.includes(known))) {
    lines.push(`${name.padEnd(12)} not here yet; npm run model -- ${name}`);
  }
  return `${lines.join("\n")}\n`;
}

async function sizeOf(directory: string): Promise<number> {
  let total = 0;
  for (const name of await readdir(directory)) total += (await stat(join(directory, name))).size;
  return total;
}

function shown(path: string): string {
  const short = relative(process.cwd(), path);
  return short.startsWith("..") ? path : short;
}
