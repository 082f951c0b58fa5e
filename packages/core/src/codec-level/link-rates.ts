import type { Instant } from "../time.ts";
import { type CodecLevelFacts, isWithin, KV_ACCURACIES, type KvAccuracy } from "./fetch-time.ts";

/**
 * Raw KV that a link brings at most, in bytes a millisecond, to who allows so much to be lost: at the level at which it comes soonest. What allows
 * more comes as soon or sooner. A transfer takes longer where it has time for a more exact level.
 */
export type LinkRates = Readonly<Record<KvAccuracy, number>>;

/** A link as its receiver measured it. */
export interface MeasuredLink {
  /** The sending sidecar: its first shard's host:port. */
  readonly source: string;
  readonly measuredAt: Instant;
  readonly rates: LinkRates;
}

/**
 * What a link of so many encoded bytes a millisecond is worth with these levels, one of them exact. A long transfer is as quick as the slowest of
 * encoding, sending and decoding, which overlap (`fetchMs`).
 */
export function linkRates(levels: readonly CodecLevelFacts[], bytesPerMs: number): LinkRates {
  const best = (budget: KvAccuracy) =>
    Math.max(
      ...levels
        .filter(({ accuracy }) => isWithin(accuracy, budget))
        .map(({ ratio, encodeBytesPerMs, decodeBytesPerMs }) =>
          Math.min(encodeBytesPerMs, ratio * bytesPerMs, decodeBytesPerMs),
        ),
    );
  const [exact, near, fast] = KV_ACCURACIES.map(best) as [number, number, number];
  return { exact, near, fast };
}
