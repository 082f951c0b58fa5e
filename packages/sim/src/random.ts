/** A stream of numbers in [0, 1) that its seed decides (Mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let word = Math.imul(state ^ (state >>> 15), state | 1);
    word ^= word + Math.imul(word ^ (word >>> 7), word | 61);
    return ((word ^ (word >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A waiting time of a Poisson process of `rate` events per unit. */
export function exponential(random: () => number, rate: number): number {
  return -Math.log(1 - random()) / rate;
}
