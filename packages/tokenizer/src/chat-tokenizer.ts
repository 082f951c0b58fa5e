import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { KvasirError, oneLine } from "@kvasir/core";
import { Tokenizer } from "tokenizers";
import { z } from "zod";
import { bytesFromPiece, bytesFromToken } from "./byte-level.ts";
import { type ChatMessage, type ChatTemplate, compileChatTemplate, type RenderOptions } from "./chat-template.ts";
import { createByteDetokenizer, createWindowDetokenizer, type Detokenizer, type TokenBytes } from "./detokenizer.ts";
import { readModelJson } from "./model-file.ts";

/** A model's tokenizer and chat template. Encoding runs on threads of the binding, off the event loop. */
export interface ChatTokenizer {
  encode(text: string, options?: { readonly addSpecialTokens?: boolean }): Promise<number[]>;
  /** The prompt of a conversation, special tokens included: encode it without adding them again. */
  renderChat(messages: readonly ChatMessage[], options?: RenderOptions): string;
  createDetokenizer(): Detokenizer;
  /** The token as text, special ones by name; an incomplete character shows as U+FFFD. */
  tokenText(id: number): string;
  /** The token's bytes. */
  tokenBytes(id: number): Uint8Array;
  readonly hasChatTemplate: boolean;
  readonly vocabSize: number;
}

/** Far above any vocabulary in use: tables are indexed by id. */
const TOKEN_ID_MAX = 2 ** 22;

const UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });

const TokenizerJson = z.object({
  decoder: z.unknown(),
  added_tokens: z.array(z.object({ id: z.int().nonnegative(), content: z.string(), special: z.boolean() })).optional(),
});
const SpecialToken = z.union([z.string(), z.object({ content: z.string() }), z.null()]).optional();
const TokenizerConfig = z.object({
  chat_template: z
    .union([z.string(), z.array(z.object({ name: z.string(), template: z.string() })), z.null()])
    .optional(),
  bos_token: SpecialToken,
  eos_token: SpecialToken,
  unk_token: SpecialToken,
  pad_token: SpecialToken,
});

export async function loadTokenizer(modelDir: string): Promise<ChatTokenizer> {
  const facts = await readModelJson(modelDir, "tokenizer.json", TokenizerJson, "required");
  const config = (await readModelJson(modelDir, "tokenizer_config.json", TokenizerConfig, "optional")) ?? {};
  const path = join(modelDir, "tokenizer.json");
  const unusable = (error: unknown) => {
    const message = oneLine(`${path} cannot be used: ${error instanceof Error ? error.message : String(error)}`);
    return new KvasirError({ reason: "invalid_request", field: "model", message, cause: error });
  };
  let binding: Tokenizer;
  try {
    binding = Tokenizer.fromFile(path);
  } catch (error) {
    throw unusable(error);
  }
  const template = await loadTemplate(modelDir, config);
  const added = new Map((facts?.added_tokens ?? []).map((token) => [token.id, token]));
  const tokens: string[] = [];
  for (const [token, id] of Object.entries(binding.getVocab(true))) {
    if (id > TOKEN_ID_MAX) throw unusable(`token ${token} has the id ${id}; at most ${TOKEN_ID_MAX}`);
    tokens[id] = token;
  }
  const byteLevel = usesByteLevel(facts?.decoder);
  const bytesOf = byteLevel ? bytesFromToken : usesByteFallback(facts?.decoder) ? bytesFromPiece : encodeUtf8;
  const bytes = Array.from(tokens, (token, id) => {
    if (token === undefined) return undefined;
    return added.has(id) ? encodeUtf8(token) : bytesOf(token);
  });
  const isSpecial = (id: number) => added.get(id)?.special === true;
  const textBytes: TokenBytes = bytes.map((value, id) => (isSpecial(id) ? undefined : value));
  const decoder = binding.getDecoder();
  return {
    async encode(text, { addSpecialTokens = true } = {}) {
      try {
        const encoding = await binding.encode(text, null, { addSpecialTokens });
        return encoding.getIds();
      } catch (error) {
        throw unusable(error); // What a vocabulary lacks shows only here.
      }
    },
    renderChat(messages, options) {
      if (template === undefined) {
        const message = "this model has no chat template; use /v1/completions";
        throw new KvasirError({ reason: "invalid_request", field: "messages", message });
      }
      return template.render(messages, options);
    },
    createDetokenizer() {
      if (byteLevel) return createByteDetokenizer(textBytes);
      return createWindowDetokenizer(
        (id) => (isSpecial(id) ? undefined : tokens[id]),
        (window) => decoder?.decode(window) ?? window.join(" "),
      );
    },
    tokenText(id) {
      return UTF8.decode(bytes[id]);
    },
    tokenBytes: (id) => bytes[id] ?? new Uint8Array(),
    hasChatTemplate: template !== undefined,
    vocabSize: tokens.length,
  };
}

async function loadTemplate(
  modelDir: string,
  config: z.infer<typeof TokenizerConfig>,
): Promise<ChatTemplate | undefined> {
  const own = config.chat_template ?? undefined;
  const named = Array.isArray(own) ? (own.find((entry) => entry.name === "default") ?? own[0])?.template : own;
  const source = named ?? (await readFile(join(modelDir, "chat_template.jinja"), "utf8").catch(() => undefined));
  if (source === undefined) return undefined;
  const specials: Record<string, string> = {};
  for (const key of ["bos_token", "eos_token", "unk_token", "pad_token"] as const) {
    const token = config[key];
    if (token !== null && token !== undefined) specials[key] = typeof token === "string" ? token : token.content;
  }
  return compileChatTemplate(source, specials);
}

const Decoder = z.object({ type: z.string(), decoders: z.array(z.unknown()).optional() });

/** Whether the decoder maps characters to bytes and nothing else that depends on neighbours. */
function usesByteLevel(decoder: unknown): boolean {
  const parsed = Decoder.safeParse(decoder);
  if (!parsed.success) return false;
  if (parsed.data.type === "ByteLevel") return true;
  return (
    parsed.data.type === "Sequence" && parsed.data.decoders?.length === 1 && usesByteLevel(parsed.data.decoders[0])
  );
}

/** Whether the vocabulary is SentencePiece's, with tokens for bytes. */
function usesByteFallback(decoder: unknown): boolean {
  const parsed = Decoder.safeParse(decoder);
  if (!parsed.success) return false;
  return parsed.data.type === "ByteFallback" || (parsed.data.decoders ?? []).some(usesByteFallback);
}

function encodeUtf8(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}
