import { existsSync } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { resolve } from "node:path";
import { defineOptions, runMain } from "@kvasir/config";
import { importGguf } from "@kvasir/models";

const options = defineOptions("kvasir import", "makes a model directory of a GGUF file", {
  file: {
    type: "string",
    env: "KVASIR_IMPORT_FILE",
    positional: true,
    required: true,
    help: "The GGUF file of a Llama-family model.",
  },
  directory: {
    type: "string",
    env: "KVASIR_IMPORT_DIRECTORY",
    positional: true,
    required: true,
    help: "Where config.json, tokenizer.json, tokenizer_config.json and the weights go; made if it is not there.",
  },
  force: {
    type: "boolean",
    env: "KVASIR_IMPORT_FORCE",
    help: "Replace a directory that holds something already.",
  },
});

await runMain(options, async ({ file, directory, force }) => {
  const source = resolve(file);
  if (!existsSync(source)) throw new Error(`${file}: there is no such file`);
  const target = resolve(directory);
  if (!force && (await holdsSomething(target))) {
    throw new Error(`${directory} is there and not empty; name another directory, or add --force to replace it`);
  }
  await importGguf(source, target);
  for (const name of (await readdir(target)).sort()) {
    const { size } = await stat(`${target}/${name}`);
    process.stdout.write(`${directory}/${name} (${size} bytes)\n`);
  }
  process.stdout.write(`serve it: npm run up -- --model ${directory}\n`);
});

async function holdsSomething(path: string): Promise<boolean> {
  if (!existsSync(path)) return false;
  if (!(await stat(path)).isDirectory()) throw new Error(`${path} is a file; name a directory`);
  return (await readdir(path)).length > 0;
}
