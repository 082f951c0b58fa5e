import { type CodecProfileFacts, type KvAccuracy, type TrafficFacts, TransferBook } from "@kvasir/core";
import type { FetchResponse, KvSource, Ticket } from "@kvasir/proto";
import { AdaptiveLoad, type LoadFacts } from "./adaptive-load.ts";
import type { BenchSidecar, Pull } from "./bench-sidecar.ts";
import { RecentTimes } from "./recent-times.ts";

/** Tokens that are decided on together, and computed in one step. */
export const CHUNK_TOKENS = 64;
const STEP_TOKENS = 512;
/** Between two looks at a load of which nothing is heard. */
const LOOK_MS = 10;
/** What is between the last KV and the first token, before anybody measured it. */
export const TAIL_MS = 30;

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

function pullRequest(context: Context, tokenBegin: number, tokenCount: number, level: number) {
  const { source, ticket, profileId, blockIds } = context;
  const tokenEnd = tokenBegin + tokenCount;
  return {
    ...{ source, ticket, blockIds, tokenBegin, tokenEnd, stallTimeoutMs: 120_000 },
    ...(level === 0 ? {} : { levels: [{ tokenEnd, level }], codecProfileId: profileId }),
  };
}

/** The first token when all is computed, in steps as large as a worker's. */
export async function computed(context: Context): Promise<Loaded> {
  const begun = performance.now();
  const end = context.tokenIds.length - 1;
  for (let begin = 0; begin < end; begin += STEP_TOKENS)
    await compute(context, begin, Math.min(end, begin + STEP_TOKENS));
  await compute(context, end, end + 1);
  const ms = performance.now() - begun;
  return { ms, wireBytes: 0, computedTokenCount: end, tokensByLevel: new Map() };
}

/** The first token when all comes at one level. */
export async function fetched(context: Context, level: number, tokenCount: number): Promise<Loaded> {
  const begun = performance.now();
  const last = await context.sink.fetch(pullRequest(context, 0, tokenCount, level));
  await compute(context, tokenCount, tokenCount + 1);
  const ms = performance.now() - begun;
  const tokensByLevel = new Map([[level, tokenCount]]);
  return { ms, wireBytes: Number(last.dataBytes), computedTokenCount: 0, tokensByLevel };
}

/** What a load knows of its link, its levels and the device; carried from one request to the next, as a worker does. */
export interface Knowledge {
  readonly book: TransferBook;
  readonly profile: CodecProfileFacts;
  /** To compute a token. */
  readonly computeMs: RecentTimes;
  /** From the last KV to the first token: a step of one token, and what is between. */
  readonly tailMs: RecentTimes;
}

/** Of the only other sidecar there is. */
const PEER = "source";

/** A worker that has seen its link once, at that speed. */
export function knowledgeOf(profile: CodecProfileFacts, bytesPerMs: number, computeMsPerToken: number): Knowledge {
  const book = new TransferBook([profile]);
  book.begin(PEER);
  const traffic = { wireBytes: 1e6, rawBytes: 1e6, encodeMs: 0, decodeMs: 0 };
  book.observe(PEER, undefined, new Map([[0, traffic]]), 1e6 / bytesPerMs);
  book.end(PEER);
  return { book, profile, computeMs: new RecentTimes(computeMsPerToken), tailMs: new RecentTimes(TAIL_MS) };
}

/** What a load asks of its `TransferBook`. `objectiveMs`: from its beginning until all KV is there. */
export function loadFacts(
  { book, profile }: Pick<Knowledge, "book" | "profile">,
  tokenCount: number,
  bytesPerToken: number,
  budget: KvAccuracy,
  objectiveMs: number,
): LoadFacts {
  return {
    ...{ chunkCount: tokenCount / CHUNK_TOKENS, chunkTokens: CHUNK_TOKENS, bytesPerToken },
    ...{ book, peer: PEER, profileId: profile.id, budget, deadlineMs: objectiveMs },
    levels: profile.levels,
  };
}

/** The first token when an `AdaptiveLoad` decides how each chunk comes. */
export async function adapted(
  context: Context,
  knowledge: Knowledge,
  budget: KvAccuracy,
  objectiveMs: number,
): Promise<Loaded> {
  const begunAt = performance.now();
  const elapsedMs = () => performance.now() - begunAt;
  const { book, profile, computeMs, tailMs } = knowledge;
  const end = context.tokenIds.length - 1;
  const load = new AdaptiveLoad(
    loadFacts(knowledge, end, context.bytesPerToken, budget, objectiveMs - tailMs.feared),
    computeMs,
  );
  const done = Promise.withResolvers<void>();
  const pulls = new Map<number, Pull>();
  /** Of each chunk, the pull that counts: those before it were taken back. */
  const turns = new Map<number, object>();
  const tokensByLevel = new Map<number, number>();
  let wireBytes = 0;
  let computedTokenCount = 0;

  const pulled = async (chunk: number, count: number, level: number) => {
    book.begin(PEER);
    const before = pulls.get(chunk);
    const turn = {};
    turns.set(chunk, turn);
    let lastBytes = 0;
    let askedMs = 0;
    try {
      await before?.takeBack();
      if (turns.get(chunk) !== turn) return;
      const request = pullRequest(context, chunk * CHUNK_TOKENS, count * CHUNK_TOKENS, level);
      const pull = context.sink.begin(request, (progress) => {
        lastBytes = Number(progress.dataBytes);
        if (turns.get(chunk) === turn) load.received(chunk, lastBytes, elapsedMs());
      });
      pulls.set(chunk, pull);
      askedMs = elapsedMs();
      const last = await pull.done;
      lastBytes = Number(last.dataBytes);
      if (turns.get(chunk) !== turn) return;
      book.observe(PEER, profile.id, trafficOf(last), Number(last.transferNanos) / 1e6);
      load.arrived(chunk);
      tokensByLevel.set(level, (tokensByLevel.get(level) ?? 0) + count * CHUNK_TOKENS);
    } catch (error) {
      if (turns.get(chunk) === turn) throw error;
      // What was too slow to wait for tells of the link more than anything.
      const traffic = { wireBytes: lastBytes, rawBytes: lastBytes, encodeMs: 0, decodeMs: 0 };
      book.observe(PEER, undefined, new Map([[0, traffic]]), elapsedMs() - askedMs);
    } finally {
      wireBytes += lastBytes;
      book.end(PEER);
    }
  };
  const computedHere = async (chunk: number) => {
    turns.delete(chunk);
    await pulls.get(chunk)?.takeBack();
    load.released(chunk);
    await compute(context, chunk * CHUNK_TOKENS, (chunk + 1) * CHUNK_TOKENS);
    computedTokenCount += CHUNK_TOKENS;
    load.computed(chunk, elapsedMs());
  };
  const go = () => {
    for (let action = load.next(elapsedMs()); action !== undefined; action = load.next(elapsedMs())) {
      const act = "level" in action ? pulled(action.chunk, action.count, action.level) : computedHere(action.chunk);
      act.then(go, done.reject);
    }
    if (load.isDone) done.resolve();
  };
  const timer = setInterval(go, LOOK_MS);
  try {
    go();
    await done.promise;
  } finally {
    clearInterval(timer);
  }
  const loadedMs = elapsedMs();
  await compute(context, end, end + 1);
  tailMs.add(elapsedMs() - loadedMs);
  return { ms: elapsedMs(), wireBytes, computedTokenCount, tokensByLevel };
}

function trafficOf({ levels }: FetchResponse): ReadonlyMap<number, TrafficFacts> {
  return new Map(
    levels.map(({ level, wireBytes, rawBytes, encodeNanos, decodeNanos }) => [
      level,
      {
        ...{ wireBytes: Number(wireBytes), rawBytes: Number(rawBytes) },
        ...{ encodeMs: Number(encodeNanos) / 1e6, decodeMs: Number(decodeNanos) / 1e6 },
      },
    ]),
  );
}
