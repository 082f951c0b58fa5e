import { z } from "zod";
import { readModelJson } from "./model-file.ts";

/** What a gateway must know of a model beside its tokenizer. */
export interface ModelFacts {
  /**
   * Largest prompt plus output. Where attention slides over a window, the window: up to it both are the same, and the sidecar runs models no
   * further.
   */
  readonly contextLength: number;
  readonly vocabSize: number;
  /** Tokens that end a text, from config.json and generation_config.json. */
  readonly eosTokenIds: readonly number[];
}

const TokenIds = z.union([z.int().nonnegative(), z.array(z.int().nonnegative()), z.null()]).optional();
const Config = z.object({
  model_type: z.string().optional(),
  max_position_embeddings: z.int().positive(),
  sliding_window: z.int().positive().nullish(),
  use_sliding_window: z.boolean().optional(),
  vocab_size: z.int().positive(),
  eos_token_id: TokenIds,
});
const GenerationConfig = z.object({ eos_token_id: TokenIds });

export async function loadModelFacts(modelDir: string): Promise<ModelFacts> {
  const config = await readModelJson(modelDir, "config.json", Config, "required");
  if (config === undefined) throw new Error("a required file cannot be absent");
  const generation = await readModelJson(modelDir, "generation_config.json", GenerationConfig, "optional");
  const eosTokenIds = [...new Set([...list(config.eos_token_id), ...list(generation?.eos_token_id)])];
  const contextLength = Math.min(config.max_position_embeddings, windowOf(config) ?? Number.POSITIVE_INFINITY);
  return { contextLength, vocabSize: config.vocab_size, eosTokenIds };
}

/** Families whose windows have a switch. */
const SWITCHED_WINDOW: ReadonlySet<string | undefined> = new Set(["qwen2", "qwen3"]);
/** The window that a Mistral has when its config.json has no `sliding_window`; null is none. */
const MISTRAL_WINDOW = 4096;

function windowOf(config: z.infer<typeof Config>): number | undefined {
  if (SWITCHED_WINDOW.has(config.model_type) && config.use_sliding_window !== true) return undefined;
  if (config.sliding_window === undefined && config.model_type === "mistral") return MISTRAL_WINDOW;
  return config.sliding_window ?? undefined;
}

function list(ids: z.infer<typeof TokenIds>): readonly number[] {
  if (ids === null || ids === undefined) return [];
  return Array.isArray(ids) ? ids : [ids];
}
