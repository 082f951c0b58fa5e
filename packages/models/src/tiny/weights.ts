/** A tensor by name, row-major. */
export interface NamedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

export interface TinyShape {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layerCount: number;
  readonly headCount: number;
  readonly kvHeadCount: number;
  readonly headSize: number;
  readonly vocabSize: number;
}

/**
 * Random weights of a Llama model. Scales keep activations near one and logits a few units apart, so that greedy output varies; rows of the
 * head below `quietTokens` (the special tokens) are zero, so that they are rarely sampled.
 */
export function randomWeights(shape: TinyShape, quietTokenIds: ReadonlySet<number>, seed: number): NamedTensor[] {
  const random = gaussian(seed);
  const tensors: NamedTensor[] = [];
  const matrix = (name: string, rows: number, cols: number, gain: number) => {
    const scale = gain / Math.sqrt(cols);
    tensors.push({
      name,
      shape: [rows, cols],
      data: Float32Array.from({ length: rows * cols }, () => random() * scale),
    });
  };
  const norm = (name: string) =>
    tensors.push({
      name,
      shape: [shape.hiddenSize],
      data: Float32Array.from({ length: shape.hiddenSize }, () => 1 + 0.1 * random()),
    });
  const { hiddenSize: hidden, intermediateSize: mlp } = shape;
  const query = shape.headCount * shape.headSize;
  const kv = shape.kvHeadCount * shape.headSize;
  matrix("model.embed_tokens.weight", shape.vocabSize, hidden, Math.sqrt(hidden));
  for (let layer = 0; layer < shape.layerCount; layer++) {
    const prefix = `model.layers.${layer}`;
    norm(`${prefix}.input_layernorm.weight`);
    matrix(`${prefix}.self_attn.q_proj.weight`, query, hidden, 1.5);
    matrix(`${prefix}.self_attn.k_proj.weight`, kv, hidden, 1.5);
    matrix(`${prefix}.self_attn.v_proj.weight`, kv, hidden, 1.5);
    matrix(`${prefix}.self_attn.o_proj.weight`, hidden, query, 1.5);
    norm(`${prefix}.post_attention_layernorm.weight`);
    matrix(`${prefix}.mlp.gate_proj.weight`, mlp, hidden, 1.5);
    matrix(`${prefix}.mlp.up_proj.weight`, mlp, hidden, 1.5);
    matrix(`${prefix}.mlp.down_proj.weight`, hidden, mlp, 1.5);
  }
  norm("model.norm.weight");
  matrix("lm_head.weight", shape.vocabSize, hidden, 3);
  const head = tensors.at(-1)?.data;
  for (const id of quietTokenIds) head?.fill(0, id * hidden, (id + 1) * hidden);
  return tensors;
}

/** Normal numbers by Box and Muller over a 32-bit generator (Mulberry32): the same on every machine up to the math library's last bit. */
function gaussian(seed: number): () => number {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** A safetensors file: 8-byte header length, JSON header, data. */
export function safetensorsBytes(tensors: readonly NamedTensor[]): Buffer {
  const header: Record<string, object> = {};
  let offset = 0;
  for (const { name, shape, data } of tensors) {
    header[name] = { dtype: "F32", shape, data_offsets: [offset, offset + data.byteLength] };
    offset += data.byteLength;
  }
  const json = Buffer.from(JSON.stringify(header));
  const padded = Buffer.concat([json, Buffer.alloc((8 - (json.length % 8)) % 8, " ")]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  const data = tensors.map(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  return Buffer.concat([length, padded, ...data]);
}
