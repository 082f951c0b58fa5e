/** What a link does while requests come, one at a time. */
export interface BandwidthTrace {
  readonly name: string;
  /** Bytes a millisecond, so many milliseconds after a request began. */
  readonly rates: (request: number) => (ms: number) => number;
}

/** Every `holdMs` another speed, uniform in `[low, high]` bytes a millisecond. */
export function uniformTrace(low: number, high: number, holdMs: number): BandwidthTrace {
  return {
    name: `Uniform: every ${holdMs} ms another speed`,
    rates: (request) => {
      const draw = drawsFrom(request + 1);
      const drawn: number[] = [];
      return (ms) => {
        const step = Math.floor(ms / holdMs);
        while (drawn.length <= step) drawn.push(low + (high - low) * draw());
        return drawn[step] as number;
      };
    },
  };
}

/** From `high` to a tenth of it, once, at a moment drawn from the first `withinMs`; every other request the other way round. */
export function stepTrace(high: number, withinMs: number): BandwidthTrace {
  return {
    name: `Steps: once within ${withinMs} ms from the greatest speed to a tenth of it, every other request the other way round`,
    rates: (request) => {
      const atMs = withinMs * drawsFrom(request + 1)();
      return (ms) => (ms < atMs === (request % 2 === 0) ? high : high / 10);
    },
  };
}

/** Uniform in 0 to 1, the same each time: a linear congruential generator (Knuth's MMIX constants, upper bits). */
function drawsFrom(seed: number): () => number {
  let state = BigInt(seed) * 0x9e37_79b9_7f4a_7c15n;
  return () => {
    state = (state * 6_364_136_223_846_793_005n + 1_442_695_040_888_963_407n) & 0xffff_ffff_ffff_ffffn;
    return Number(state >> 32n) / 2 ** 32;
  };
}
