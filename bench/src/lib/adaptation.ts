import type { CodecLevelFacts, KvChunkFacts } from "@kvasir/core";
import { AdaptiveLoad, type LoadFacts } from "./adaptive-load.ts";
import type { RecentTimes } from "./recent-times.ts";

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

/** A simulated world of one source, one link and one device. */
export interface World {
  /** Bytes that the link carries in the n-th millisecond. */
  readonly rate: (ms: number) => number;
  /** As they are, whatever the book believes. */
  readonly levels: readonly CodecLevelFacts[];
  readonly computeMsPerToken: number;
  /** From the last KV to the first token. */
  readonly tailMs: number;
}

/** Between two looks at a load of which nothing is heard. */
const LOOK_MS = 10;

interface SimulatedPull {
  readonly chunk: number;
  readonly level: number;
  readonly begunMs: number;
  readonly rawBytes: number;
  readonly wireBytes: number;
  readonly encodeMs: number;
  readonly decodeMs: number;
  sentBytes: number;
  firstByteMs: number | undefined;
  sentMs: number | undefined;
}

/** A level for each chunk, or what decides on the way. */
export type Way = { readonly kind: "text" } | { readonly kind: "level"; readonly level: number } | AdaptiveWay;

export interface AdaptiveWay {
  readonly kind: "adaptive";
  readonly load: LoadFacts;
  /** What was measured before; goes on being measured. */
  readonly computeMs: RecentTimes;
}

/** Milliseconds to the first token, in steps of one; pulls share the link equally and are sent as far as they are encoded. */
export function simulatedMs(
  world: World,
  way: Way,
  context: Pick<LoadFacts, "chunkCount" | "chunkTokens" | "bytesPerToken">,
): number {
  const { chunkCount, chunkTokens, bytesPerToken } = context;
  const textMs = chunkCount * chunkTokens * world.computeMsPerToken;
  if (way.kind === "text") return textMs + world.tailMs;
  const link = new SimulatedLink(world, chunkTokens * bytesPerToken);
  if (way.kind === "level") {
    for (let chunk = 0; chunk < chunkCount; chunk++) link.pull(chunk, 1, way.level, 0);
    for (let ms = 1; ; ms++) {
      link.tick(ms);
      if (link.pulls.size === 0) return ms + world.tailMs;
    }
  }
  const load = new AdaptiveLoad(way.load, way.computeMs);
  let computing: { readonly chunk: number; readonly endMs: number } | undefined;
  for (let ms = 0; ; ms++) {
    let isNews = ms % LOOK_MS === 0;
    for (const pull of link.tick(ms)) {
      isNews = true;
      load.arrived(pull.chunk);
      observe(way.load, pull, ms);
    }
    for (const { chunk, sentBytes } of link.pulls.values()) load.received(chunk, sentBytes, ms);
    if (computing !== undefined && ms >= computing.endMs) {
      load.computed(computing.chunk, ms);
      computing = undefined;
      isNews = true;
    }
    if (!isNews) continue;
    for (let action = load.next(ms); action !== undefined; action = load.next(ms)) {
      const late = link.pulls.get(action.chunk);
      if (late !== undefined) {
        link.pulls.delete(action.chunk);
        const traffic = { wireBytes: late.sentBytes, rawBytes: late.sentBytes, encodeMs: 0, decodeMs: 0 };
        way.load.book.observe(way.load.peer, undefined, new Map([[0, traffic]]), ms - (late.firstByteMs ?? ms));
        way.load.book.end(way.load.peer);
      }
      if ("level" in action) {
        way.load.book.begin(way.load.peer);
        link.pull(action.chunk, action.count, action.level, ms);
        continue;
      }
      load.released(action.chunk);
      computing = { chunk: action.chunk, endMs: ms + chunkTokens * world.computeMsPerToken };
    }
    if (load.isDone) return ms + world.tailMs;
  }
}

function observe({ book, peer, profileId }: LoadFacts, pull: SimulatedPull, nowMs: number): void {
  const { level, wireBytes, rawBytes, encodeMs, decodeMs, firstByteMs = nowMs } = pull;
  const traffic = { wireBytes, rawBytes, encodeMs, decodeMs };
  book.observe(peer, profileId, new Map([[level, traffic]]), Math.max(1, nowMs - firstByteMs));
  book.end(peer);
}

class SimulatedLink {
  readonly pulls = new Map<number, SimulatedPull>();
  readonly #world: World;
  readonly #chunkBytes: number;

  constructor(world: World, chunkBytes: number) {
    this.#world = world;
    this.#chunkBytes = chunkBytes;
  }

  pull(chunk: number, count: number, level: number, nowMs: number): void {
    const rawBytes = count * this.#chunkBytes;
    const { ratio, encodeBytesPerMs, decodeBytesPerMs } = this.#world.levels[level] as CodecLevelFacts;
    // One thread encodes: the next chunk waits for those before it.
    const before = [...this.pulls.values()].reduce((sum, pull) => Math.max(sum, pull.begunMs + pull.encodeMs), nowMs);
    this.pulls.set(chunk, {
      ...{ chunk, level, begunMs: before, rawBytes, wireBytes: rawBytes / ratio, sentBytes: 0 },
      encodeMs: rawBytes / encodeBytesPerMs,
      decodeMs: rawBytes / decodeBytesPerMs,
      ...{ firstByteMs: undefined, sentMs: undefined },
    });
  }

  /** A millisecond passes; answers with what has arrived. */
  tick(nowMs: number): readonly SimulatedPull[] {
    let credit = this.#world.rate(nowMs);
    let sending = [...this.pulls.values()].filter((pull) => pull.sentMs === undefined);
    while (credit > 1e-6 && sending.length > 0) {
      const share = credit / sending.length;
      const still: SimulatedPull[] = [];
      for (const pull of sending) {
        const encoded = Math.min(1, (nowMs - pull.begunMs) / Math.max(1e-9, pull.encodeMs)) * pull.wireBytes;
        const sent = Math.min(share, Math.max(0, encoded - pull.sentBytes));
        pull.sentBytes += sent;
        credit -= sent;
        if (sent > 0) pull.firstByteMs ??= nowMs;
        if (pull.sentBytes >= pull.wireBytes - 1e-6) pull.sentMs = nowMs;
        else if (sent === share) still.push(pull);
      }
      sending = still;
    }
    const arrived = [...this.pulls.values()].filter(
      // Decoding goes on while bytes come; the last of some ten frames is decoded after the last byte.
      ({ sentMs, begunMs, decodeMs }) =>
        sentMs !== undefined && nowMs >= Math.max(sentMs + decodeMs / 10, begunMs + decodeMs),
    );
    for (const { chunk } of arrived) this.pulls.delete(chunk);
    return arrived;
  }
}
