/** The second word of a key: hash tables go by the first. */
export function keyBits(keys: Uint8Array, offset = 0): number {
  const [b0 = 0, b1 = 0, b2 = 0, b3 = 0] = keys.subarray(offset + 4, offset + 8);
  return b0 | (b1 << 8) | (b2 << 16) | (b3 << 24);
}
