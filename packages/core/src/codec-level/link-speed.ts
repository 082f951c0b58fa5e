/** What the frames of one level, or of all, of one transfer took. */
export interface TrafficFacts {
  readonly wireBytes: number;
  readonly rawBytes: number;
  readonly encodeMs: number;
  readonly decodeMs: number;
}

/** What transfers told of a link, in bytes a millisecond. */
export interface LinkSpeed {
  /** Moving mean. */
  readonly usual: number;
  /** What it has to be feared to fall to; not above `usual`. */
  readonly low: number;
  /** Of the last transfers, the newest last. */
  readonly recent: readonly number[];
}

/** Smaller transfers tell of latency, not of speed, unless they took long. */
export const TELLING_BYTES = 64 * 1024;
const TELLING_MS = 100;
/** Part that one transfer has in the mean. Larger: follows a change sooner; smaller: is not misled by one odd transfer. */
const WEIGHT = 0.5;
/** Where the coders took this part of the time, one after the other, the link was not the narrow place. */
const CODER_BOUND_SHARE = 0.7;
/** What the estimate grows by then: the link may be faster than anything that was sent. Larger: a link that recovered is found out sooner. */
const GROWTH = 1.5;
/** Transfers that are remembered. Larger: a rare slow spell is feared for longer; smaller: forgotten sooner. */
const RECENT_MAX = 64;
/** Share of them that was slower than what is feared. Larger: more is exact; smaller: less is late. */
const LOW_QUANTILE = 0.1;
/** Until so many transfers have told how much it varies, half of its mean speed is feared. */
const TELLING_COUNT = 4;
const UNKNOWN_LOW_SHARE = 0.5;

/**
 * What is known of a link after another transfer. A transfer that waited for encoding or decoding tells only that the link is at least as fast; the
 * estimate then grows, so that cheaper levels are tried again. `activeStreams`: transfers that shared the link with it, itself included.
 *
 * `low` is a low quantile of what was seen lately rather than some deviations below the mean: speeds of shared links are skewed, and a quantile is
 * a speed that there was.
 */
export function observedLink(
  before: LinkSpeed | undefined,
  traffic: TrafficFacts,
  transferMs: number,
  activeStreams: number,
): LinkSpeed | undefined {
  if (traffic.wireBytes <= 0 || transferMs <= 0) return before;
  if (traffic.wireBytes < TELLING_BYTES && transferMs < TELLING_MS) return before;
  const seen = (traffic.wireBytes / transferMs) * Math.max(1, activeStreams);
  const isCoderBound = traffic.encodeMs + traffic.decodeMs > CODER_BOUND_SHARE * transferMs;
  const mean = before?.usual ?? seen;
  const speed = before && isCoderBound ? Math.max(seen, mean * GROWTH) : seen;
  const usual = isCoderBound ? speed : mean + WEIGHT * (speed - mean);
  const recent = [...(before?.recent ?? []), speed].slice(-RECENT_MAX);
  return { usual, low: Math.min(usual, lowOf(recent, usual)), recent };
}

function lowOf(recent: readonly number[], usual: number): number {
  const low = [...recent].sort((a, b) => a - b)[Math.ceil(LOW_QUANTILE * recent.length) - 1] ?? usual;
  return recent.length < TELLING_COUNT ? Math.min(low, UNKNOWN_LOW_SHARE * usual) : low;
}
