/** A chunk on its way; with all before it in place, it could be computed instead. */
export interface UnderWayChunk {
  /** Encoded, still to come. */
  readonly remainingBytes: number;
  readonly computeMs: number;
}

export interface UnderWayLink {
  /** What it carries now. */
  readonly bytesPerMs: number;
  readonly usualBytesPerMs: number;
}

/**
 * How many of the chunks on their way, from the first on, shall be computed instead of waited for, by a receiver that has nothing else left to do.
 *
 * Those that are not taken back have the link for themselves then, so all are there soonest when computing and the rest of the link end together.
 * None is taken back while waiting meets the deadline, nor while only waiting may still meet it, should the link be as fast again as usual.
 *
 * `chunks` are in the order of the text and share the link. A chunk that is taken back is lost as far as it came.
 */
export function overtaken(
  chunks: readonly UnderWayChunk[],
  { bytesPerMs, usualBytesPerMs }: UnderWayLink,
  deadlineMs: number | undefined,
): number {
  const allBytes = chunks.reduce((sum, { remainingBytes }) => sum + remainingBytes, 0);
  let soonestMs = allBytes / bytesPerMs;
  if (deadlineMs !== undefined && soonestMs <= deadlineMs) return 0;
  let count = 0;
  let computedMs = 0;
  let restBytes = allBytes;
  for (const [index, { remainingBytes, computeMs }] of chunks.entries()) {
    restBytes -= remainingBytes;
    computedMs += computeMs;
    const ms = Math.max(computedMs, restBytes / bytesPerMs);
    if (ms >= soonestMs) continue;
    soonestMs = ms;
    count = index + 1;
  }
  const mayRecover = deadlineMs !== undefined && allBytes / usualBytesPerMs <= deadlineMs;
  return mayRecover && soonestMs > deadlineMs ? 0 : count;
}
