import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { learnBpe } from "./learn-bpe.ts";
import { TINY_TEXT } from "./text.ts";
import { randomWeights, safetensorsBytes, type TinyShape } from "./weights.ts";

/** Grows with each change of what is written, so that an older copy is made anew. */
const RECIPE_VERSION = 1;
const MERGE_COUNT = 640;
const SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] as const;
const CONTEXT_LENGTH = 2048;
const SEED = 20;

const CHAT_TEMPLATE =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/**
 * A random-weight Llama chat model of 2.7 MB for fast tests: real files in every respect, made in about a second, the same each time.
 * Answers with its directory, `modelsDir/tiny`.
 */
export async function ensureTinyModel(modelsDir: string): Promise<string> {
  const directory = join(modelsDir, "tiny");
  const stamp = join(directory, "recipe");
  const made = await readFile(stamp, "utf8").catch(() => undefined);
  if (made === String(RECIPE_VERSION)) return directory;
  const fresh = `${directory}.${process.pid}`;
  await rm(fresh, { recursive: true, force: true });
  await mkdir(fresh, { recursive: true });
  for (const [name, content] of Object.entries(tinyModelFiles())) await writeFile(join(fresh, name), content);
  await writeFile(join(fresh, "recipe"), String(RECIPE_VERSION));
  await rm(directory, { recursive: true, force: true });
  // Somebody else may have made it meanwhile: theirs is as good.
  await rename(fresh, directory).catch(() => rm(fresh, { recursive: true, force: true }));
  return directory;
}

function tinyModelFiles(): Record<string, string | Buffer> {
  const bpe = learnBpe(TINY_TEXT, MERGE_COUNT);
  const tokens = [...SPECIAL_TOKENS, ...bpe.tokens];
  const shape: TinyShape = {
    hiddenSize: 128,
    intermediateSize: 256,
    layerCount: 3,
    headCount: 4,
    kvHeadCount: 2,
    headSize: 32,
    vocabSize: tokens.length,
  };
  const [endOfText, imStart, imEnd] = [0, 1, 2];
  const json = (value: unknown) => `${JSON.stringify(value, null, 1)}\n`;
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    "config.json": json({
      architectures: ["LlamaForCausalLM"],
      model_type: "llama",
      hidden_size: shape.hiddenSize,
      intermediate_size: shape.intermediateSize,
      num_hidden_layers: shape.layerCount,
      num_attention_heads: shape.headCount,
      num_key_value_heads: shape.kvHeadCount,
      head_dim: shape.headSize,
      vocab_size: shape.vocabSize,
      max_position_embeddings: CONTEXT_LENGTH,
      rms_norm_eps: 1e-5,
      rope_theta: 10000,
      hidden_act: "silu",
      tie_word_embeddings: false,
      bos_token_id: imStart,
      eos_token_id: imEnd,
      torch_dtype: "float32",
    }),
    "generation_config.json": json({ bos_token_id: imStart, eos_token_id: [imEnd, endOfText] }),
    "model.safetensors": safetensorsBytes(randomWeights(shape, new Set([endOfText, imStart, imEnd]), SEED)),
    "tokenizer.json": json({
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: SPECIAL_TOKENS.map((content, id) => ({
        ...{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
      })),
      normalizer: null,
      pre_tokenizer: byteLevel,
      post_processor: null,
      decoder: byteLevel,
      model: {
        ...{ type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null },
        ...{ end_of_word_suffix: null, fuse_unk: false, byte_fallback: false },
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
        merges: bpe.merges.map(([left, right]) => `${left} ${right}`),
      },
    }),
    "tokenizer_config.json": json({
      tokenizer_class: "PreTrainedTokenizerFast",
      bos_token: "<|im_start|>",
      eos_token: "<|im_end|>",
      unk_token: "<|endoftext|>",
      model_max_length: CONTEXT_LENGTH,
      chat_template: CHAT_TEMPLATE,
    }),
  };
}
