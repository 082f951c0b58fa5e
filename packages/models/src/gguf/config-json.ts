import type { Architecture } from "./architectures.ts";
import type { TypedMetadata } from "./typed-metadata.ts";

/** A model's config.json from its GGUF metadata, in Hugging Face's keys. The sidecar reads the metadata itself; this is for all others. */
export function configJson(
  metadata: TypedMetadata,
  name: string,
  architecture: Architecture,
  vocabSize: number,
): object {
  const key = (rest: string) => `${name}.${rest}`;
  const hiddenSize = metadata.integer(key("embedding_length"));
  const headCount = metadata.integer(key("attention.head_count"));
  const headSize = metadata.optionalInteger(key("attention.key_length")) ?? hiddenSize / headCount;
  const rotated = metadata.optionalInteger(key("rope.dimension_count")) ?? headSize;
  return {
    architectures: [architecture.className],
    model_type: architecture.modelType,
    hidden_size: hiddenSize,
    intermediate_size: metadata.integer(key("feed_forward_length")),
    num_hidden_layers: metadata.integer(key("block_count")),
    num_attention_heads: headCount,
    num_key_value_heads: metadata.optionalInteger(key("attention.head_count_kv")) ?? headCount,
    head_dim: headSize,
    vocab_size: vocabSize,
    max_position_embeddings: contextLength(metadata, name),
    rms_norm_eps: metadata.optionalNumber(key("attention.layer_norm_rms_epsilon")) ?? 1e-5,
    rope_theta: metadata.optionalNumber(key("rope.freq_base")) ?? 10000,
    ...(rotated === headSize ? {} : { partial_rotary_factor: rotated / headSize }),
    ...ropeScaling(metadata, key),
    hidden_act: architecture.activation,
    bos_token_id: metadata.optionalInteger("tokenizer.ggml.bos_token_id") ?? null,
    eos_token_id: metadata.optionalInteger("tokenizer.ggml.eos_token_id") ?? null,
  };
}

/** Largest prompt plus output: no more than the attention's window, where there is one, as the sidecar runs it. */
export function contextLength(metadata: TypedMetadata, name: string): number {
  const positions = metadata.integer(`${name}.context_length`);
  const window = metadata.optionalInteger(`${name}.attention.sliding_window`) ?? 0;
  return window > 0 ? Math.min(positions, window) : positions;
}

function ropeScaling(metadata: TypedMetadata, key: (rest: string) => string): object {
  const type = metadata.optionalText(key("rope.scaling.type")) ?? "none";
  const factor = metadata.optionalNumber(key("rope.scaling.factor")) ?? 1;
  if (type === "none" || factor === 1) return {};
  const original = metadata.optionalInteger(key("rope.scaling.original_context_length"));
  return {
    rope_scaling: {
      rope_type: type,
      factor,
      ...(original === undefined ? {} : { original_max_position_embeddings: original }),
    },
  };
}
