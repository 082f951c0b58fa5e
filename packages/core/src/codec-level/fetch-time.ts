/** What an encoding costs. Speeds are in bytes of raw KV; `Infinity` where the work is already done, as for KV stored encoded. */
export interface CodecLevelFacts {
  readonly name: string;
  readonly accuracy: KvAccuracy;
  /** Raw bytes over encoded bytes, headers included. */
  readonly ratio: number;
  readonly encodeBytesPerMs: number;
  readonly decodeBytesPerMs: number;
}

/** `exact`: bit for bit. `near` and `fast`: what a request allows itself to lose, the latter more. */
export const KV_ACCURACIES = ["exact", "near", "fast"] as const;
export type KvAccuracy = (typeof KV_ACCURACIES)[number];

/** Whether KV of an accuracy will do for who allows as much as `budget`. */
export function isWithin(accuracy: KvAccuracy, budget: KvAccuracy): boolean {
  return KV_ACCURACIES.indexOf(accuracy) <= KV_ACCURACIES.indexOf(budget);
}

/** Some tokens' KV. Chunks are given in the order of the text. */
export interface KvChunkFacts {
  readonly rawBytes: number;
  /** To compute it once all that stands before it is there. */
  readonly computeMs: number;
}

/** A link as measured between two sidecars. */
export interface LinkFacts {
  readonly bytesPerMs: number;
  /** What it may fall to while the chunks travel; not above `bytesPerMs`. */
  readonly lowBytesPerMs: number;
  /** Transfers that share it, this one included. */
  readonly activeStreams: number;
  /** Until the first byte. */
  readonly latencyMs: number;
  /** Encoded bytes of this very request that are on their way already, and go first. */
  readonly queuedBytes: number;
}

/**
 * How long chunks take to arrive, each at its level: the source encodes, the link sends and the receiver decodes one chunk at a time, and the
 * three overlap.
 *
 * ```text
 * encode  1 2 3
 * send      1 1 2 2 3 3
 * decode        1   2   3
 * ```
 */
export function fetchMs(
  chunks: readonly KvChunkFacts[],
  levels: readonly CodecLevelFacts[],
  link: LinkFacts,
  first = 0,
): number {
  const bytesPerMs = link.bytesPerMs / Math.max(1, link.activeStreams);
  let encoded = 0;
  let sent = link.latencyMs + link.queuedBytes / bytesPerMs;
  let decoded = 0;
  for (let i = first; i < chunks.length; i++) {
    const { rawBytes } = chunks[i] as KvChunkFacts;
    const level = levels[i] as CodecLevelFacts;
    encoded += rawBytes / level.encodeBytesPerMs;
    sent = Math.max(encoded, sent) + rawBytes / level.ratio / bytesPerMs;
    decoded = Math.max(sent, decoded) + rawBytes / level.decodeBytesPerMs;
  }
  return decoded;
}
