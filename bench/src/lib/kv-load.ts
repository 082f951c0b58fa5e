import { setTimeout as sleep } from "node:timers/promises";
import {
  type CodecLevelFacts,
  type KvAccuracy,
  type KvChunkFacts,
  observedLevel,
  observedLink,
  PLANNED_SHARE,
  planTransfer,
  type TrafficFacts,
} from "@kvasir/core";
import type { FetchResponse, KvSource, Ticket } from "@kvasir/proto";
import type { BenchSidecar } from "./bench-sidecar.ts";

/** Tokens that are decided on together, and computed in one step. */
export const CHUNK_TOKENS = 128;
/** How often a chunk that is on its way is taken for a sign of the link's speed. */
const LOOK_MS = 40;

/** A context whose KV another sidecar has, and a question of one token behind it. */
export interface Context {
  readonly source: KvSource;
  readonly ticket: Ticket;
  readonly profileId: Uint8Array;
  readonly sink: BenchSidecar;
  readonly blockIds: number[];
  /** A multiple of a chunk, and the question. */
  readonly tokenIds: readonly number[];
  readonly bytesPerToken: number;
}

/** What one request took. */
export interface Loaded {
  readonly ms: number;
  readonly wireBytes: number;
  readonly computedTokenCount: number;
  /** Tokens by the level that they came at. */
  readonly tokensByLevel: ReadonlyMap<number, number>;
}

let lastSequence = 0n;

/** Computes `[begin, end)`, whose tokens before are in place. The question's token is sampled after. */
async function compute({ sink, blockIds, tokenIds }: Context, begin: number, end: number): Promise<void> {
  const sequenceId = ++lastSequence;
  const isLast = end === tokenIds.length;
  await sink.step({
    starts: [{ sequenceId, promptTokenCount: tokenIds.length, sampling: { maxTokens: 1 }, blockIds }],
    slices: [
      {
        ...{ sequenceId, startPosition: begin, tokenCount: end - begin },
        ...{ tokenIds: tokenIds.slice(begin, end), sample: isLast },
      },
    ],
  });
  await sink.step({ droppedSequenceIds: [sequenceId] });
}

function pull(context: Context, tokenBegin: number, tokenEnd: number, level: number): Promise<FetchResponse> {
  const { sink, source, ticket, profileId, blockIds } = context;
  return sink.fetch({
    ...{ source, ticket, blockIds, tokenBegin, tokenEnd, stallTimeoutMs: 120_000 },
    ...(level === 0 ? {} : { levels: [{ tokenEnd, level }], codecProfileId: profileId }),
  });
}

/** The first token when all is computed, a chunk a step. */
export async function computed(context: Context): Promise<Loaded> {
  const begun = performance.now();
  const end = context.tokenIds.length - 1;
  for (let begin = 0; begin < end; begin += CHUNK_TOKENS) await compute(context, begin, begin + CHUNK_TOKENS);
  await compute(context, end, end + 1);
  const ms = performance.now() - begun;
  return { ms, wireBytes: 0, computedTokenCount: end, tokensByLevel: new Map() };
}

/** The first token when all comes at one level. */
export async function fetched(context: Context, level: number, tokenCount: number): Promise<Loaded> {
  const begun = performance.now();
  const last = await pull(context, 0, tokenCount, level);
  await compute(context, tokenCount, tokenCount + 1);
  const ms = performance.now() - begun;
  const tokensByLevel = new Map([[level, tokenCount]]);
  return { ms, wireBytes: Number(last.dataBytes), computedTokenCount: 0, tokensByLevel };
}

/** What a load knows of its link, its levels and the device; carried from one request to the next, as a worker does. */
export interface Knowledge {
  bytesPerMs: number;
  computeMsPerToken: number;
  levels: CodecLevelFacts[];
}

/**
 * The first token when each chunk is computed or comes at some level, as `planTransfer` says with what was measured so far. The device takes
 * chunks from the front and the link from the end, at the same time, until they meet.
 */
export async function adapted(
  context: Context,
  knowledge: Knowledge,
  budget: KvAccuracy,
  objectiveMs: number,
): Promise<Loaded> {
  const begun = performance.now();
  let [front, back] = [0, (context.tokenIds.length - 1) / CHUNK_TOKENS];
  let wireBytes = 0;
  const tokensByLevel = new Map<number, number>();
  let changed = Promise.withResolvers<void>();
  const tell = () => {
    changed.resolve();
    changed = Promise.withResolvers();
  };
  /** What is on its way, and since when. */
  const underWay = new Set<{ readonly wireBytes: number; readonly since: number }>();
  /** Chunks that should be here long since tell that the link is slower than it was. */
  const speed = () => {
    const [oldest] = underWay;
    if (oldest === undefined) return knowledge.bytesPerMs;
    const bytes = [...underWay].reduce((sum, { wireBytes }) => sum + wireBytes, 0);
    return Math.min(knowledge.bytesPerMs, bytes / (performance.now() - oldest.since));
  };
  const plan = () => {
    const chunk: KvChunkFacts = {
      rawBytes: CHUNK_TOKENS * context.bytesPerToken,
      computeMs: CHUNK_TOKENS * knowledge.computeMsPerToken,
    };
    return planTransfer({
      chunks: Array.from({ length: back - front }, () => chunk),
      levels: knowledge.levels,
      link: { bytesPerMs: speed(), activeStreams: 1, latencyMs: 1 },
      ...{
        budget,
        deadlineMs: PLANNED_SHARE * Math.max(0, objectiveMs - (performance.now() - begun)),
        mayCompute: true,
      },
    });
  };
  const linking = async () => {
    while (front < back) {
      const level = plan().levels.at(-1);
      if (level === undefined) return;
      const index = knowledge.levels.indexOf(level);
      back--;
      const sent = { wireBytes: (CHUNK_TOKENS * context.bytesPerToken) / level.ratio, since: performance.now() };
      underWay.add(sent);
      const last = await pull(context, back * CHUNK_TOKENS, (back + 1) * CHUNK_TOKENS, index);
      const streams = underWay.size;
      underWay.delete(sent);
      learn(knowledge, last, streams);
      wireBytes += Number(last.dataBytes);
      tokensByLevel.set(index, (tokensByLevel.get(index) ?? 0) + CHUNK_TOKENS);
      tell();
    }
  };
  let computedTokenCount = 0;
  let isLinkOver = false;
  const computing = async () => {
    while (front < back) {
      if (!isLinkOver && plan().computedCount === 0) {
        await Promise.race([changed.promise, sleep(LOOK_MS)]);
        continue;
      }
      const at = performance.now();
      const begin = front++ * CHUNK_TOKENS;
      await compute(context, begin, begin + CHUNK_TOKENS);
      knowledge.computeMsPerToken = (performance.now() - at) / CHUNK_TOKENS;
      computedTokenCount += CHUNK_TOKENS;
    }
  };
  // Two at a time, so that the link does not wait while one is encoded or decoded.
  const link = Promise.all([linking(), linking()]).finally(() => {
    isLinkOver = true;
    tell();
  });
  await Promise.all([link, computing()]);
  const end = context.tokenIds.length - 1;
  await compute(context, end, end + 1);
  return { ms: performance.now() - begun, wireBytes, computedTokenCount, tokensByLevel };
}

function learn(knowledge: Knowledge, last: FetchResponse, streams: number): void {
  const sum = { wireBytes: 0, rawBytes: 0, encodeMs: 0, decodeMs: 0 };
  for (const traffic of last.levels) {
    const facts: TrafficFacts = {
      wireBytes: Number(traffic.wireBytes),
      rawBytes: Number(traffic.rawBytes),
      encodeMs: Number(traffic.encodeNanos) / 1e6,
      decodeMs: Number(traffic.decodeNanos) / 1e6,
    };
    for (const key of ["wireBytes", "rawBytes", "encodeMs", "decodeMs"] as const) sum[key] += facts[key];
    const level = knowledge.levels[traffic.level];
    if (level && traffic.level > 0) knowledge.levels[traffic.level] = observedLevel(level, facts);
  }
  knowledge.bytesPerMs =
    observedLink(knowledge.bytesPerMs, sum, Number(last.transferNanos) / 1e6, streams) ?? knowledge.bytesPerMs;
}
