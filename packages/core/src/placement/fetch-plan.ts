import type { AttachedWorker } from "./cluster-view.ts";
import type { PredictionOptions } from "./predict.ts";
import type { WorkerFacts } from "./worker-facts.ts";

/** The least time that a fetch of cached KV must save before it is worth a call. Larger: more is computed twice; smaller: more calls. */
const FETCH_SAVES_MIN_MS = 5;

/** Who lends KV: a worker or a store. */
export interface PrefixHolder {
  readonly facts: { readonly workerId: string; readonly address: string };
  readonly epoch: number;
}

/** Tokens [0, `tokenEnd`) of a prompt are cached elsewhere. */
export interface HeldPrefix {
  readonly holder: PrefixHolder;
  readonly tokenEnd: number;
  /** Absent: a worker. */
  readonly isStore?: boolean;
  /** Of them, those that a store reads from disk. */
  readonly diskTokenCount: number;
}

/** What the worker that computes a prompt may fetch of it. */
export interface PrefixFetchPlan extends HeldPrefix {
  /** Beyond what it has itself. */
  readonly tokenCount: number;
  readonly fetchMs: number;
  /** What computing them would take. */
  readonly computeMs: number;
}

/** A worker, and how much of a prompt it has cached. */
export interface Holding {
  readonly worker: AttachedWorker;
  readonly cachedTokenCount: number;
}

/** Of a prompt's holders among the workers, for each kind of blocks the one that has most; of those that have as much the idlest. */
export class LongestHoldings {
  readonly #longest = new Map<string, Holding>();

  constructor(holdings: Iterable<Holding>) {
    for (const holding of holdings) {
      if (holding.cachedTokenCount === 0) continue;
      const kind = kindOf(holding.worker.facts);
      const known = this.#longest.get(kind);
      if (known === undefined || precedes(holding, known)) this.#longest.set(kind, holding);
    }
  }

  /**
   * What a worker could fetch: of those who have more than it, what saves most time; undefined when nobody has. `computeMsBeyond`: to compute the
   * prompt when so many tokens of it are there.
   */
  planFor(
    { worker: { facts }, cachedTokenCount }: Holding,
    stored: HeldPrefix | undefined,
    computeMsBeyond: (tokenCount: number) => number,
    options: PredictionOptions,
  ): PrefixFetchPlan | undefined {
    const longest = this.#longest.get(kindOf(facts));
    const held: HeldPrefix[] = stored === undefined ? [] : [stored];
    if (longest) held.unshift({ holder: longest.worker, tokenEnd: longest.cachedTokenCount, diskTokenCount: 0 });
    let best: PrefixFetchPlan | undefined;
    for (const prefix of held) {
      if (prefix.tokenEnd <= cachedTokenCount) continue;
      const tokenCount = prefix.tokenEnd - cachedTokenCount;
      const fetchMs = fetchMsOf(tokenCount, prefix.diskTokenCount, facts, options);
      const computeMs = computeMsBeyond(cachedTokenCount) - computeMsBeyond(prefix.tokenEnd);
      const plan = { ...prefix, tokenCount, fetchMs, computeMs };
      if (best === undefined || savedMs(plan) > savedMs(best)) best = plan;
    }
    return best;
  }
}

/** Whether fetching is enough quicker than computing. */
export function isWorthFetching(plan: PrefixFetchPlan): boolean {
  return savedMs(plan) >= FETCH_SAVES_MIN_MS;
}

function savedMs({ fetchMs, computeMs }: PrefixFetchPlan): number {
  return computeMs - fetchMs;
}

function fetchMsOf(
  tokenCount: number,
  diskTokenCount: number,
  { kvBytesPerToken }: WorkerFacts,
  { handoverMs, kvBytesPerSecond, storeDiskBytesPerSecond }: PredictionOptions,
): number {
  const msOf = (tokens: number, bytesPerSecond: number) => ((tokens * kvBytesPerToken) / bytesPerSecond) * 1_000;
  const fromDisk = Math.min(tokenCount, diskTokenCount);
  return handoverMs + msOf(tokenCount, kvBytesPerSecond) + msOf(fromDisk, storeDiskBytesPerSecond);
}

/** Blocks of one kind have the same hashes for the same text, and the same bits in them. */
function kindOf({ exactFingerprint, blockSize }: WorkerFacts): string {
  return `${exactFingerprint} ${blockSize}`;
}

function precedes(a: Holding, b: Holding): boolean {
  if (a.cachedTokenCount !== b.cachedTokenCount) return a.cachedTokenCount > b.cachedTokenCount;
  const difference = busyness(a) - busyness(b);
  return difference < 0 || (difference === 0 && a.worker.facts.workerId < b.worker.facts.workerId);
}

function busyness({ worker: { load } }: Holding): number {
  return (load?.runningCount ?? 0) + (load?.waitingCount ?? 0);
}
