import { KvasirError } from "@kvasir/core";
import type { TypedMetadata } from "./typed-metadata.ts";

/** llama.cpp's token types that matter here. */
const CONTROL = 3;
const USER_DEFINED = 4;

const LLAMA3_SPLIT =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN2_SPLIT = LLAMA3_SPLIT.replace("\\p{N}{1,3}", "\\p{N}");

interface PreTokenizer {
  readonly preTokenizer: object;
  readonly normalizer: object | null;
  readonly ignoreMerges: boolean;
}

/** Pre-tokenizers by llama.cpp's names, as Hugging Face's tokenizers write them. */
const PRE_TOKENIZERS: Readonly<Record<string, PreTokenizer>> = {
  default: gpt2(),
  "gpt-2": gpt2(),
  smollm: {
    ...gpt2(),
    preTokenizer: sequence({ type: "Digits", individual_digits: true }, byteLevel(true)),
  },
  "llama-bpe": { ...splitBy(LLAMA3_SPLIT), ignoreMerges: true },
  llama3: { ...splitBy(LLAMA3_SPLIT), ignoreMerges: true },
  qwen2: { ...splitBy(QWEN2_SPLIT), normalizer: { type: "NFC" } },
};

/** A Hugging Face `tokenizer.json` with the vocabulary, merges and pre-tokenizer of a GGUF file's byte-level BPE. */
export function tokenizerJsonFromGguf(file: string, metadata: TypedMetadata): object {
  const model = metadata.text("tokenizer.ggml.model");
  if (model !== "gpt2") {
    throw unsupported(`${file}: tokenizer ${model} is not supported; supported: gpt2 (byte-level BPE)`);
  }
  const name = metadata.optionalText("tokenizer.ggml.pre") ?? "default";
  const pre = PRE_TOKENIZERS[name];
  if (pre === undefined) {
    const known = Object.keys(PRE_TOKENIZERS).join(", ");
    throw unsupported(`${file}: pre-tokenizer ${name} is not supported; supported: ${known}`);
  }
  const tokens = metadata.texts("tokenizer.ggml.tokens");
  const types = metadata.optionalIntegers("tokenizer.ggml.token_type") ?? [];
  const added = tokens.flatMap((content, id) => {
    const type = types[id];
    if (type !== CONTROL && type !== USER_DEFINED) return [];
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    return [{ id, content, ...flags, special: type === CONTROL }];
  });
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: pre.normalizer,
    pre_tokenizer: pre.preTokenizer,
    post_processor: null,
    decoder: byteLevel(true),
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: pre.ignoreMerges,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: metadata.texts("tokenizer.ggml.merges"),
    },
  };
}

function gpt2(): PreTokenizer {
  return { preTokenizer: byteLevel(true), normalizer: null, ignoreMerges: false };
}

function splitBy(pattern: string): PreTokenizer {
  const split = { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
  return { preTokenizer: sequence(split, byteLevel(false)), normalizer: null, ignoreMerges: false };
}

function byteLevel(useRegex: boolean): object {
  return { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: useRegex };
}

function sequence(...pretokenizers: object[]): object {
  return { type: "Sequence", pretokenizers };
}

function unsupported(message: string): KvasirError {
  return new KvasirError({ reason: "invalid_request", field: "model", message });
}
