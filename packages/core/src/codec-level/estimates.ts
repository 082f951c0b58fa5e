import type { CodecLevelFacts, KvAccuracy } from "./fetch-time.ts";

/** Divergence of the next token's distribution, in nats, that `near` and `fast` allow in the mean. */
const NEAR_KL_MAX = 0.003;
const FAST_KL_MAX = 0.05;

/** Levels below this are exact: raw and lossless. */
const LOSSY_FROM = 2;

/** The accuracy of a level; of a lossy one by its measured divergence. Undefined: not measured, or more than anybody allows. */
export function accuracyOf(level: number, kl: number): KvAccuracy | undefined {
  if (level < LOSSY_FROM) return "exact";
  if (!(kl >= 0) || kl > FAST_KL_MAX) return undefined;
  return kl <= NEAR_KL_MAX ? "near" : "fast";
}

/** What the frames of one level, or of all, of one transfer took. */
export interface TrafficFacts {
  readonly wireBytes: number;
  readonly rawBytes: number;
  readonly encodeMs: number;
  readonly decodeMs: number;
}

/** Smaller transfers tell of latency, not of speed. */
const TELLING_BYTES = 64 * 1024;
/** Part that one transfer has in an estimate. Larger: follows a change sooner; smaller: is not misled by one odd transfer. */
const WEIGHT = 0.5;
/** Where the coders took this part of the time, one after the other, the link was not the narrow place. */
const CODER_BOUND_SHARE = 0.7;
/** What the estimate grows by then: the link may be faster than anything that was sent. Larger: a link that recovered is found out sooner. */
const GROWTH = 1.5;

/**
 * The speed of a link after another transfer, in bytes a millisecond. A transfer that waited for encoding or decoding tells only that the link is
 * at least as fast; the estimate then grows, so that cheaper levels are tried again. `activeStreams`: transfers that shared the link with it, itself
 * included.
 */
export function observedLink(
  before: number | undefined,
  traffic: TrafficFacts,
  transferMs: number,
  activeStreams: number,
): number | undefined {
  if (traffic.wireBytes < TELLING_BYTES || transferMs <= 0) return before;
  const speed = (traffic.wireBytes / transferMs) * Math.max(1, activeStreams);
  if (before === undefined) return speed;
  const isCoderBound = traffic.encodeMs + traffic.decodeMs > CODER_BOUND_SHARE * transferMs;
  if (isCoderBound) return Math.max(speed, before * GROWTH);
  return before + WEIGHT * (speed - before);
}

/** What a level costs, after another transfer that used it. */
export function observedLevel(before: CodecLevelFacts, traffic: TrafficFacts): CodecLevelFacts {
  const { wireBytes, rawBytes, encodeMs, decodeMs } = traffic;
  if (rawBytes < TELLING_BYTES || encodeMs <= 0 || decodeMs <= 0) return before;
  const towards = (old: number, seen: number) => old + WEIGHT * (seen - old);
  return {
    ...before,
    ratio: towards(before.ratio, rawBytes / wireBytes),
    encodeBytesPerMs: towards(before.encodeBytesPerMs, rawBytes / encodeMs),
    decodeBytesPerMs: towards(before.decodeBytesPerMs, rawBytes / decodeMs),
  };
}
