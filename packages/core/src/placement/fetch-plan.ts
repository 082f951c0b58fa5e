import type { AttachedWorker } from "./cluster-view.ts";
import type { KvRate, KvRates, RatesFromOne } from "./link-belief.ts";
import type { PredictionOptions } from "./predict.ts";
import type { WorkerFacts } from "./worker-facts.ts";

/** The least time that a fetch of cached KV must save before it is worth a call. Larger: more is computed twice; smaller: more calls. */
const FETCH_SAVES_MIN_MS = 5;
/** Holders that are looked at where links differ. Larger: a quick one among many that have as much is found sooner; smaller: cheaper. */
const HOLDERS_MAX = 4;

/** Who lends KV: a worker or a store. */
export interface PrefixHolder {
  readonly facts: { readonly workerId: string; readonly address: string; readonly transferAddress?: string };
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
  /** At the soonest; where the request has time for more exact KV, it takes longer. */
  readonly fetchMs: number;
  /** Of it, what it takes of the link. */
  readonly linkMs: number;
  /** At which KV is believed to come from there. */
  readonly rate: KvRate;
  /** What computing them would take. */
  readonly computeMs: number;
}

/** A worker, and how much of a prompt it has cached. */
export interface Holding {
  readonly worker: AttachedWorker;
  readonly cachedTokenCount: number;
}

/** What a fetch is predicted from. */
export interface FetchOptions extends PredictionOptions {
  readonly kvRates: KvRates;
}

interface KindOfBlocks {
  longest: Holding;
  readonly all: Holding[];
  /** The first of them, in order, once somebody asked for more than one. */
  first: readonly Lender[] | undefined;
}

/** A holder, and the links from it. */
interface Lender extends HeldPrefix {
  readonly rateTo: RatesFromOne;
}

/** A prompt's holders among the workers, for each kind of blocks: those that have most come first, of those that have as much the idlest. */
export class LongestHoldings {
  readonly #kinds = new Map<string, KindOfBlocks>();

  constructor(holdings: Iterable<Holding>) {
    for (const holding of holdings) {
      if (holding.cachedTokenCount === 0) continue;
      const name = kindOf(holding.worker.facts);
      const kind = this.#kinds.get(name);
      if (kind === undefined) {
        this.#kinds.set(name, { longest: holding, all: [holding], first: undefined });
        continue;
      }
      kind.all.push(holding);
      if (precedes(holding, kind.longest)) kind.longest = holding;
    }
  }

  /**
   * What a worker could fetch: of those who have more than it, what saves most time; undefined when nobody has. `stored`: what stores have, the best
   * first. `computeMsBeyond`: to compute the prompt when so many tokens of it are there. As long as all links are alike, the first of the workers
   * and the first of the stores are the best of theirs. `options`: the same for all workers.
   */
  planFor(
    { worker: { facts }, cachedTokenCount }: Holding,
    stored: readonly HeldPrefix[],
    computeMsBeyond: (tokenCount: number) => number,
    options: FetchOptions,
  ): PrefixFetchPlan | undefined {
    const { kvRates } = options;
    let best: PrefixFetchPlan | undefined;
    const consider = (prefix: HeldPrefix, rate: KvRate) => {
      const { holder, tokenEnd, isStore, diskTokenCount } = prefix;
      const tokenCount = tokenEnd - cachedTokenCount;
      const { fetchMs, linkMs } = fetchTimes(tokenCount, diskTokenCount, facts, rate, options);
      const computeMs = computeMsBeyond(cachedTokenCount) - computeMsBeyond(tokenEnd);
      const from = isStore === undefined ? { holder } : { holder, isStore };
      const plan = { ...from, tokenEnd, diskTokenCount, tokenCount, fetchMs, linkMs, rate, computeMs };
      if (best === undefined || savedMs(plan) > savedMs(best)) best = plan;
    };
    let quickest = 0;
    let isBusy = false;
    for (const lender of this.#lenders(facts, kvRates)) {
      if (lender.tokenEnd <= cachedTokenCount) break;
      const rate = lender.rateTo(facts);
      // Who has no more than another one, behind a link that is no quicker, saves no more, unless the other's link is busy.
      if (rate.bytesPerSecond <= quickest && !isBusy) continue;
      quickest = Math.max(quickest, rate.bytesPerSecond);
      isBusy ||= rate.waitMs > 0;
      consider(lender, rate);
    }
    for (const prefix of stored) {
      if (prefix.tokenEnd > cachedTokenCount) consider(prefix, kvRates.from(prefix.holder.facts)(facts));
      if (kvRates.areAllAssumed) break;
    }
    return best;
  }

  #lenders(facts: WorkerFacts, kvRates: KvRates): readonly Lender[] {
    const kind = this.#kinds.get(kindOf(facts));
    if (kind === undefined) return [];
    kind.first ??= (kvRates.areAllAssumed ? [kind.longest] : firstOf(kind.all, HOLDERS_MAX)).map(
      ({ worker, cachedTokenCount }) => ({
        ...{ holder: worker, tokenEnd: cachedTokenCount, diskTokenCount: 0 },
        rateTo: kvRates.from(worker.facts),
      }),
    );
    return kind.first;
  }
}

/** The first so many, in order. */
function firstOf(all: readonly Holding[], count: number): readonly Holding[] {
  const first: Holding[] = [];
  for (const holding of all) {
    let index = first.length;
    while (index > 0 && precedes(holding, first[index - 1] as Holding)) index--;
    if (index === count) continue;
    first.splice(index, 0, holding);
    first.length = Math.min(first.length, count);
  }
  return first;
}

/** Whether fetching is enough quicker than computing. */
export function isWorthFetching(plan: PrefixFetchPlan): boolean {
  return savedMs(plan) >= FETCH_SAVES_MIN_MS;
}

function savedMs({ fetchMs, computeMs }: PrefixFetchPlan): number {
  return computeMs - fetchMs;
}

function fetchTimes(
  tokenCount: number,
  diskTokenCount: number,
  { kvBytesPerToken }: WorkerFacts,
  { bytesPerSecond, waitMs }: KvRate,
  { handoverMs, storeDiskBytesPerSecond }: PredictionOptions,
): Pick<PrefixFetchPlan, "fetchMs" | "linkMs"> {
  const msOf = (tokens: number, bytesPerSecond: number) => ((tokens * kvBytesPerToken) / bytesPerSecond) * 1_000;
  const fromDisk = Math.min(tokenCount, diskTokenCount);
  const linkMs = msOf(tokenCount, bytesPerSecond);
  return { linkMs, fetchMs: handoverMs + waitMs + linkMs + msOf(fromDisk, storeDiskBytesPerSecond) };
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
