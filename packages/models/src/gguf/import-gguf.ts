import { copyFile, link, mkdir, rename, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { KvasirError, oneLine } from "@kvasir/core";
import { ARCHITECTURES } from "./architectures.ts";
import { configJson, contextLength } from "./config-json.ts";
import { readGgufMetadata } from "./read-metadata.ts";
import { addsBeginToken, tokenizerJsonFromGguf } from "./tokenizer-json.ts";
import { type TypedMetadata, typedMetadata } from "./typed-metadata.ts";

/**
 * Makes a model directory of a GGUF file of a supported architecture: its weights as `model.gguf` (a hard link where possible) and beside them
 * config.json, generation_config.json, tokenizer.json and tokenizer_config.json with the chat template, all from its metadata. Written to
 * a directory of its own and renamed, so that nobody sees half of it.
 */
export async function importGguf(ggufPath: string, directory: string): Promise<void> {
  const file = basename(ggufPath);
  const metadata = typedMetadata(file, readGgufMetadata(ggufPath));
  const name = metadata.text("general.architecture");
  const architecture = Object.hasOwn(ARCHITECTURES, name) ? ARCHITECTURES[name] : undefined;
  if (architecture === undefined) {
    const supported = Object.keys(ARCHITECTURES).join(", ");
    const message = `${file}: architecture ${name} is not supported; supported: ${supported}`;
    throw new KvasirError({ reason: "invalid_request", field: "model", message: oneLine(message) });
  }
  const tokens = metadata.texts("tokenizer.ggml.tokens");
  const files: Record<string, object> = {
    "config.json": configJson(metadata, name, architecture, tokens.length),
    "generation_config.json": generationConfigJson(metadata),
    "tokenizer.json": tokenizerJsonFromGguf(file, metadata),
    "tokenizer_config.json": tokenizerConfigJson(metadata, tokens, contextLength(metadata, name)),
  };
  const fresh = `${directory}.${process.pid}`;
  await rm(fresh, { recursive: true, force: true });
  await mkdir(fresh, { recursive: true });
  for (const [name, value] of Object.entries(files))
    await writeFile(join(fresh, name), `${JSON.stringify(value, null, 1)}\n`);
  const weights = join(fresh, "model.gguf");
  await link(ggufPath, weights).catch(() => copyFile(ggufPath, weights));
  await rm(directory, { recursive: true, force: true });
  await rename(fresh, directory);
}

function generationConfigJson(metadata: TypedMetadata): object {
  const ids = ["eos", "eot"].map((name) => metadata.optionalInteger(`tokenizer.ggml.${name}_token_id`));
  return {
    bos_token_id: metadata.optionalInteger("tokenizer.ggml.bos_token_id") ?? null,
    eos_token_id: [...new Set(ids.filter((id) => id !== undefined))],
  };
}

function tokenizerConfigJson(metadata: TypedMetadata, tokens: readonly string[], maxLength: number): object {
  const token = (name: string) => {
    const id = metadata.optionalInteger(`tokenizer.ggml.${name}_token_id`);
    return id === undefined ? {} : { [`${TOKEN_NAMES[name] ?? name}_token`]: tokens[id] };
  };
  const template = metadata.optionalText("tokenizer.chat_template");
  return {
    tokenizer_class: "PreTrainedTokenizerFast",
    ...token("bos"),
    ...token("eos"),
    ...token("unknown"),
    ...token("padding"),
    add_bos_token: addsBeginToken(metadata),
    model_max_length: maxLength,
    ...(template === undefined ? {} : { chat_template: template }),
  };
}

const TOKEN_NAMES: Readonly<Record<string, string>> = { unknown: "unk", padding: "pad" };
