import type { CodecLevelFacts, KvAccuracy } from "./fetch-time.ts";
import { TELLING_BYTES, type TrafficFacts } from "./link-speed.ts";

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

/** Part that one transfer has in an estimate. Larger: follows a change sooner; smaller: is not misled by one odd transfer. */
const WEIGHT = 0.5;

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
