import { copyFile, link, mkdir, rename, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { KvasirError } from "@kvasir/core";
import { readGgufMetadata } from "./read-metadata.ts";
import { tokenizerJsonFromGguf } from "./tokenizer-json.ts";
import { type TypedMetadata, typedMetadata } from "./typed-metadata.ts";

/**
 * Makes a model directory of a GGUF file of the Llama family: its weights as `model.gguf` (a hard link where possible) and beside them
 * config.json, generation_config.json, tokenizer.json and tokenizer_config.json with the chat template, all from its metadata. Written to
 * a directory of its own and renamed, so that nobody sees half of it.
 */
export async function importGguf(ggufPath: string, directory: string): Promise<void> {
  const file = basename(ggufPath);
  const metadata = typedMetadata(file, readGgufMetadata(ggufPath));
  const architecture = metadata.text("general.architecture");
  if (architecture !== "llama") {
    const message = `${file}: architecture ${architecture} is not supported; supported: llama`;
    throw new KvasirError({ reason: "invalid_request", field: "model", message });
  }
  const tokens = metadata.texts("tokenizer.ggml.tokens");
  const files: Record<string, object> = {
    "config.json": configJson(metadata, tokens.length),
    "generation_config.json": generationConfigJson(metadata),
    "tokenizer.json": tokenizerJsonFromGguf(file, metadata),
    "tokenizer_config.json": tokenizerConfigJson(metadata, tokens),
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

function configJson(metadata: TypedMetadata, vocabSize: number): object {
  const hiddenSize = metadata.integer("llama.embedding_length");
  const headCount = metadata.integer("llama.attention.head_count");
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: hiddenSize,
    intermediate_size: metadata.integer("llama.feed_forward_length"),
    num_hidden_layers: metadata.integer("llama.block_count"),
    num_attention_heads: headCount,
    num_key_value_heads: metadata.optionalInteger("llama.attention.head_count_kv") ?? headCount,
    head_dim: metadata.optionalInteger("llama.attention.key_length") ?? hiddenSize / headCount,
    vocab_size: vocabSize,
    max_position_embeddings: metadata.integer("llama.context_length"),
    rms_norm_eps: metadata.optionalNumber("llama.attention.layer_norm_rms_epsilon") ?? 1e-5,
    rope_theta: metadata.optionalNumber("llama.rope.freq_base") ?? 10000,
    hidden_act: "silu",
    bos_token_id: metadata.optionalInteger("tokenizer.ggml.bos_token_id") ?? null,
    eos_token_id: metadata.optionalInteger("tokenizer.ggml.eos_token_id") ?? null,
  };
}

function generationConfigJson(metadata: TypedMetadata): object {
  const ids = ["eos", "eot"].map((name) => metadata.optionalInteger(`tokenizer.ggml.${name}_token_id`));
  return {
    bos_token_id: metadata.optionalInteger("tokenizer.ggml.bos_token_id") ?? null,
    eos_token_id: [...new Set(ids.filter((id) => id !== undefined))],
  };
}

function tokenizerConfigJson(metadata: TypedMetadata, tokens: readonly string[]): object {
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
    add_bos_token: metadata.optionalFlag("tokenizer.ggml.add_bos_token") ?? false,
    model_max_length: metadata.integer("llama.context_length"),
    ...(template === undefined ? {} : { chat_template: template }),
  };
}

const TOKEN_NAMES: Readonly<Record<string, string>> = { unknown: "unk", padding: "pad" };
