import { accuracyOf, type CodecProfileFacts, type LevelChoice, type TrafficFacts } from "@kvasir/core";
import type { DescribeResponse, FetchResponse, KvLayout } from "@kvasir/proto";

/** Bytes by the name of the level that they travelled at. */
export type LevelTotals = ReadonlyMap<string, LevelBytes>;

export interface LevelBytes {
  readonly wireBytes: number;
  readonly rawBytes: number;
}

/** What a fetch told of each level. */
export function trafficOf({ levels }: FetchResponse): ReadonlyMap<number, TrafficFacts> {
  return new Map(
    levels.map(({ level, wireBytes, rawBytes, encodeNanos, decodeNanos }) => [
      level,
      {
        wireBytes: Number(wireBytes),
        rawBytes: Number(rawBytes),
        encodeMs: Number(encodeNanos) / 1e6,
        decodeMs: Number(decodeNanos) / 1e6,
      },
    ]),
  );
}

/** Adds what a fetch told. A lossy level's frames that came lossless instead are counted as such. */
export function addTraffic(totals: Map<string, LevelBytes>, { levels }: FetchResponse, { spans }: LevelChoice): void {
  for (const { level, wireBytes, rawBytes } of levels) {
    const name = spans.find((span) => span.level === level)?.name ?? (level === 0 ? "raw" : "lossless");
    const before = totals.get(name) ?? { wireBytes: 0, rawBytes: 0 };
    totals.set(name, {
      wireBytes: before.wireBytes + Number(wireBytes),
      rawBytes: before.rawBytes + Number(rawBytes),
    });
  }
}

/** Bytes of several fetches. */
export function sumOf(all: readonly LevelTotals[]): LevelTotals {
  const sums = new Map<string, LevelBytes>();
  for (const [name, { wireBytes, rawBytes }] of all.flatMap((totals) => [...totals])) {
    const before = sums.get(name) ?? { wireBytes: 0, rawBytes: 0 };
    sums.set(name, { wireBytes: before.wireBytes + wireBytes, rawBytes: before.rawBytes + rawBytes });
  }
  return sums;
}

/** Whether coded levels are to be had between two layouts: chunks are of all heads, in one element type. */
export function isWhole(own: KvLayout, source: KvLayout | undefined): boolean {
  return source !== undefined && source.dtype === own.dtype && source.shardCount === 1 && own.shardCount === 1;
}

/** The profiles that a sidecar announced, as the choice of levels reads them. */
export function profilesOf({ codecProfiles }: DescribeResponse): readonly CodecProfileFacts[] {
  return codecProfiles.map(({ id, levels }) => ({
    id: Buffer.from(id).toString("hex"),
    levels: levels.map(({ name, ratio, kl, encodeBytesPerSecond, decodeBytesPerSecond }, level) => {
      const accuracy = accuracyOf(level, kl);
      const speed = (bytesPerSecond: number) => (bytesPerSecond > 0 ? bytesPerSecond / 1e3 : Number.POSITIVE_INFINITY);
      return accuracy === undefined
        ? undefined
        : {
            ...{ name, accuracy, ratio },
            encodeBytesPerMs: speed(encodeBytesPerSecond),
            decodeBytesPerMs: speed(decodeBytesPerSecond),
          };
    }),
  }));
}
