import { type CodecLevelFacts, type KvAccuracy, type KvChunkFacts, planTransfer } from "@kvasir/core";

/** A load of KV over a link whose speed changes with every chunk. */
export interface Load {
  readonly chunks: readonly KvChunkFacts[];
  /** Bytes a millisecond while the n-th chunk travels. */
  readonly speeds: readonly number[];
  readonly deadlineMs: number;
}

/** When everything is there, with every chunk at one level, or computed where there is none. */
export function fixedMs(load: Load, level: CodecLevelFacts | undefined): number {
  if (level === undefined) return load.chunks.reduce((sum, chunk) => sum + chunk.computeMs, 0);
  return load.chunks.reduce((sum, chunk, index) => sum + travelMs(chunk, level, load.speeds[index] as number), 0);
}

/**
 * The same when it is planned anew before each chunk with the speed that the one before had; `guess` for the first. The link takes chunks from the
 * end, the receiver computes from the front, until they meet.
 */
export function adaptiveMs(
  load: Load,
  levels: readonly CodecLevelFacts[],
  budget: KvAccuracy,
  guess: number,
  mayCompute: boolean,
): number {
  let [front, back, fetched] = [0, load.chunks.length, 0];
  let [linkMs, computedMs, speed] = [0, 0, guess];
  while (front < back) {
    const now = Math.min(linkMs, computedMs);
    const plan = planTransfer({
      chunks: load.chunks.slice(front, back),
      levels,
      link: { bytesPerMs: speed, activeStreams: 1, latencyMs: 0 },
      budget,
      deadlineMs: Math.max(0, load.deadlineMs - now),
      mayCompute,
    });
    const level = plan.levels.at(-1);
    if (level === undefined || (plan.computedCount > 0 && computedMs <= linkMs)) {
      computedMs += (load.chunks[front++] as KvChunkFacts).computeMs;
      continue;
    }
    if (plan.computedCount === 0) computedMs = Math.max(computedMs, linkMs);
    speed = load.speeds[fetched++] as number;
    linkMs += travelMs(load.chunks[--back] as KvChunkFacts, level, speed);
    if (plan.computedCount === 0) computedMs = linkMs;
  }
  return Math.max(linkMs, fetched === 0 ? computedMs : linkMs, front === 0 ? 0 : computedMs);
}

/** Stages overlap: the slowest counts. */
function travelMs(chunk: KvChunkFacts, level: CodecLevelFacts, speed: number): number {
  return Math.max(
    chunk.rawBytes / level.encodeBytesPerMs,
    chunk.rawBytes / level.ratio / speed,
    chunk.rawBytes / level.decodeBytesPerMs,
  );
}
