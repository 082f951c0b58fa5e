/** A GGUF metadata value with its type number, for files made by tests. */
export type TestValue =
  | { readonly type: "u32"; readonly value: number }
  | { readonly type: "f32"; readonly value: number }
  | { readonly type: "text"; readonly value: string }
  | { readonly type: "texts"; readonly value: readonly string[] }
  | { readonly type: "flag"; readonly value: boolean }
  | { readonly type: "f32s"; readonly value: readonly number[] }
  | { readonly type: "i32s"; readonly value: readonly number[] };

/** The header and metadata of a GGUF file without tensors. */
export function ggufBytes(pairs: Readonly<Record<string, TestValue>>): Buffer {
  const u32 = (value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return bytes;
  };
  const u64 = (value: number) => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt(value));
    return bytes;
  };
  const f32 = (value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeFloatLE(value);
    return bytes;
  };
  const text = (value: string) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)]);
  const parts = [Buffer.from("GGUF"), u32(3), u64(0), u64(Object.keys(pairs).length)];
  for (const [key, pair] of Object.entries(pairs)) {
    parts.push(text(key));
    if (pair.type === "u32") parts.push(u32(4), u32(pair.value));
    else if (pair.type === "f32") parts.push(u32(6), f32(pair.value));
    else if (pair.type === "flag") parts.push(u32(7), Buffer.from([pair.value ? 1 : 0]));
    else if (pair.type === "f32s") parts.push(u32(9), u32(6), u64(pair.value.length), ...pair.value.map(f32));
    else if (pair.type === "text") parts.push(u32(8), text(pair.value));
    else if (pair.type === "texts") parts.push(u32(9), u32(8), u64(pair.value.length), ...pair.value.map(text));
    else parts.push(u32(9), u32(5), u64(pair.value.length), ...pair.value.map(u32));
  }
  return Buffer.concat(parts);
}
