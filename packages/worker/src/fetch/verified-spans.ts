import type { TokenSpan } from "@kvasir/core";

/** Whole blocks that were verified, in order, neighbours as one. Each of the disjoint chunks begins on a block. */
export function verifiedSpans(
  chunks: readonly { readonly begin: number; readonly verifiedEnd: number }[],
  blockSize: number,
): readonly TokenSpan[] {
  const spans: TokenSpan[] = [];
  for (const { begin, verifiedEnd } of [...chunks].sort((a, b) => a.begin - b.begin)) {
    const end = verifiedEnd - (verifiedEnd % blockSize);
    if (end <= begin) continue;
    const [last] = spans.slice(-1);
    if (last?.end === begin) spans.splice(-1, 1, { begin: last.begin, end });
    else spans.push({ begin, end });
  }
  return spans;
}

/** Blocks of the spans that came from a disk; `fromDisk` tells of the blocks from token `begin` on. */
export function diskBlockCount(
  spans: readonly TokenSpan[],
  begin: number,
  fromDisk: readonly boolean[],
  blockSize: number,
): number {
  const isIn = (token: number) => spans.some((span) => span.begin <= token && token < span.end);
  return fromDisk.filter((isDisk, index) => isDisk && isIn(begin + index * blockSize)).length;
}
