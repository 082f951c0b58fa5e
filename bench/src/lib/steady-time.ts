import type { CodecLevelFacts, KvChunkFacts } from "@kvasir/core";

/** When everything is there over a steady link, with every chunk at one level, or computed where there is none. Stages overlap: the slowest counts. */
export function steadyMs(
  chunks: readonly KvChunkFacts[],
  level: CodecLevelFacts | undefined,
  bytesPerMs: number,
): number {
  const ofChunk = ({ rawBytes, computeMs }: KvChunkFacts) =>
    level === undefined
      ? computeMs
      : Math.max(
          rawBytes / level.encodeBytesPerMs,
          rawBytes / level.ratio / bytesPerMs,
          rawBytes / level.decodeBytesPerMs,
        );
  return chunks.reduce((sum, chunk) => sum + ofChunk(chunk), 0);
}
