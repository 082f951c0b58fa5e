/** Numbers from a seed, the same everywhere: Marsaglia's xorshift (Journal of Statistical Software 8.14, 2003) with 32 bits. */
export function drawsFrom(seed: number): (below: number) => number {
  let state = (seed * 0x9e3779b1 + 0x7f4a7c15) >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % below;
  };
}
