import { z } from "zod";
import { readModelJson } from "./model-file.ts";

/** What a gateway must know of a model beside its tokenizer. */
export interface ModelFacts {
  /** Largest prompt plus output. */
  readonly contextLength: number;
  readonly vocabSize: number;
  /** Tokens that end a text, from config.json and generation_config.json. */
  readonly eosTokenIds: readonly number[];
}

const TokenIds = z.union([z.int().nonnegative(), z.array(z.int().nonnegative()), z.null()]).optional();
const Config = z.object({
  max_position_embeddings: z.int().positive(),
  vocab_size: z.int().positive(),
  eos_token_id: TokenIds,
});
const GenerationConfig = z.object({ eos_token_id: TokenIds });

export async function loadModelFacts(modelDir: string): Promise<ModelFacts> {
  const config = await readModelJson(modelDir, "config.json", Config, "required");
  if (config === undefined) throw new Error("a required file cannot be absent");
  const generation = await readModelJson(modelDir, "generation_config.json", GenerationConfig, "optional");
  const eosTokenIds = [...new Set([...list(config.eos_token_id), ...list(generation?.eos_token_id)])];
  return { contextLength: config.max_position_embeddings, vocabSize: config.vocab_size, eosTokenIds };
}

function list(ids: z.infer<typeof TokenIds>): readonly number[] {
  if (ids === null || ids === undefined) return [];
  return Array.isArray(ids) ? ids : [ids];
}
