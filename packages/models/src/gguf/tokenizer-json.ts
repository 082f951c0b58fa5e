import { KvasirError, oneLine } from "@kvasir/core";
import { byteLevel, PRE_TOKENIZERS, type PreTokenizer } from "./pre-tokenizers.ts";
import { mergesByScore } from "./sentencepiece.ts";
import type { TypedMetadata } from "./typed-metadata.ts";

/** llama.cpp's token types that matter here. */
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;
/** What SentencePiece writes for a space. */
const SPACE = "\u2581";

/** A Hugging Face `tokenizer.json` with the vocabulary, merges and pre-tokenizer of a GGUF file: byte-level or SentencePiece BPE. */
export function tokenizerJsonFromGguf(file: string, metadata: TypedMetadata): object {
  const parts = isSentencePiece(metadata) ? sentencePieceParts(metadata) : byteLevelParts(file, metadata);
  const tokens = metadata.texts("tokenizer.ggml.tokens");
  const types = metadata.optionalIntegers("tokenizer.ggml.token_type") ?? [];
  const added = tokens.flatMap((content, id) => {
    const type = types[id];
    if (type !== CONTROL && type !== USER_DEFINED && type !== UNKNOWN) return [];
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    return [{ id, content, ...flags, special: type !== USER_DEFINED }];
  });
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: parts.normalizer,
    pre_tokenizer: parts.preTokenizer,
    post_processor: beginToken(metadata, tokens),
    decoder: parts.decoder,
    model: {
      type: "BPE",
      dropout: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      ...parts.model,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
    },
  };
}

/** Whether texts begin with the begin token: as the file says, otherwise as llama.cpp takes it. */
export function addsBeginToken(metadata: TypedMetadata): boolean {
  const byDefault = isSentencePiece(metadata) || preTokenizer(metadata)?.addsBeginToken === true;
  return metadata.optionalFlag("tokenizer.ggml.add_bos_token") ?? byDefault;
}

interface Parts {
  readonly normalizer: object | null;
  readonly preTokenizer: object | null;
  readonly decoder: object;
  readonly model: object;
}

function byteLevelParts(file: string, metadata: TypedMetadata): Parts {
  const model = metadata.text("tokenizer.ggml.model");
  if (model !== "gpt2") {
    const supported = "gpt2 (byte-level BPE), llama (SentencePiece BPE)";
    throw unsupported(`${file}: tokenizer ${model} is not supported; supported: ${supported}`);
  }
  const pre = preTokenizer(metadata);
  if (pre === undefined) {
    const known = Object.keys(PRE_TOKENIZERS).join(", ");
    throw unsupported(`${file}: pre-tokenizer ${preTokenizerName(metadata)} is not supported; supported: ${known}`);
  }
  return {
    normalizer: pre.normalizer,
    preTokenizer: pre.preTokenizer,
    decoder: byteLevel(true),
    model: {
      unk_token: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: pre.ignoreMerges,
      merges: metadata.texts("tokenizer.ggml.merges"),
    },
  };
}

function sentencePieceParts(metadata: TypedMetadata): Parts {
  const tokens = metadata.texts("tokenizer.ggml.tokens");
  const types = metadata.optionalIntegers("tokenizer.ggml.token_type") ?? [];
  const startsWithSpace = metadata.optionalFlag("tokenizer.ggml.add_space_prefix") ?? true;
  const replace = { type: "Replace", pattern: { String: " " }, content: SPACE };
  const decoders: object[] = [
    { type: "Replace", pattern: { String: SPACE }, content: " " },
    { type: "ByteFallback" },
    { type: "Fuse" },
    ...(startsWithSpace ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
  ];
  return {
    normalizer: startsWithSpace
      ? { type: "Sequence", normalizers: [{ type: "Prepend", prepend: SPACE }, replace] }
      : replace,
    preTokenizer: null,
    decoder: { type: "Sequence", decoders },
    model: {
      unk_token: tokens[types.indexOf(UNKNOWN)] ?? null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      merges: mergesByScore(tokens, metadata.numbers("tokenizer.ggml.scores"), types),
    },
  };
}

function beginToken(metadata: TypedMetadata, tokens: readonly string[]): object | null {
  const id = metadata.optionalInteger("tokenizer.ggml.bos_token_id");
  const token = id === undefined ? undefined : tokens[id];
  if (token === undefined || !addsBeginToken(metadata)) return null;
  const special = { SpecialToken: { id: token, type_id: 0 } };
  const sequence = (name: string) => ({ Sequence: { id: name, type_id: 0 } });
  return {
    type: "TemplateProcessing",
    single: [special, sequence("A")],
    pair: [special, sequence("A"), sequence("B")],
    special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
  };
}

function isSentencePiece(metadata: TypedMetadata): boolean {
  return metadata.text("tokenizer.ggml.model") === "llama";
}

function preTokenizerName(metadata: TypedMetadata): string {
  return metadata.optionalText("tokenizer.ggml.pre") ?? "default";
}

function preTokenizer(metadata: TypedMetadata): PreTokenizer | undefined {
  const name = preTokenizerName(metadata);
  return Object.hasOwn(PRE_TOKENIZERS, name) ? PRE_TOKENIZERS[name] : undefined;
}

function unsupported(message: string): KvasirError {
  return new KvasirError({ reason: "invalid_request", field: "model", message: oneLine(message) });
}
