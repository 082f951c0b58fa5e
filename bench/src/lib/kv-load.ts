import type { KvSource, Ticket } from "@kvasir/proto";
import type { BenchSidecar } from "./bench-sidecar.ts";

/** As of a worker. */
export const STEP_TOKENS = 512;

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
