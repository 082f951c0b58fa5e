import { type AttachedWorker, isOpen } from "./cluster-view.ts";
import { type FetchOptions, isWorthFetching, LongestHoldings, type PrefixFetchPlan } from "./fetch-plan.ts";
import { canDecode, canPrefill } from "./fit.ts";
import { comesSlowly, type HandOver, handOverOf, OTHER_RECEIVERS_MAX } from "./hand-over.ts";
import { kvDifference } from "./pair.ts";
import {
  aggregatedTtft,
  type PredictionOptions,
  predictTbtMs,
  type ReckonedLoad,
  reckonLoad,
  splitTtft,
  type TtftParts,
} from "./predict.ts";
import type { CachedTokensOf, StoredPrefixesOf } from "./prefix-overlap.ts";
import type { Reserved } from "./reservations.ts";
import { decodeBlockCount, prefillBlockCount, type RequestShape, type WorkerFacts } from "./worker-facts.ts";

/** One way to lay out a request that has room now. */
export interface Candidate {
  readonly mode: "aggregated" | "split";
  /** Aggregated on a decode worker: that was best, or no prefill worker was left. */
  readonly isLocalPrefill: boolean;
  /** Absent when aggregated. */
  readonly prefill: AttachedWorker | undefined;
  readonly decode: AttachedWorker;
  readonly ttftMs: number;
  readonly ttft: TtftParts;
  /** Of the prompt, to be computed where it is computed. */
  readonly uncachedTokenCount: number;
  /** What the worker that computes the prompt should fetch, from another one or a store; absent: nothing. */
  readonly fetch?: PrefixFetchPlan | undefined;
  /** What it could fetch, and computes because that is not slower. */
  readonly recompute?: PrefixFetchPlan | undefined;
  /** How the prompt's KV is believed to come to the decode worker; absent when aggregated. */
  readonly handOver?: HandOver | undefined;
  readonly tbtMs: number;
  /** Speed the TTFT was reckoned with. */
  readonly prefillTokensPerSecond: number;
  /** On the decode worker, before this request. */
  readonly freeBlockCount: number;
  /** On the prefill worker; 0 when aggregated. */
  readonly prefillFreeBlockCount: number;
  readonly sequenceCount: number;
  /** It is predicted to be late, and runs to see whether that is so. */
  readonly isTrial?: boolean;
}

/** Every way a choice can end. */
export type ChoiceOutcome =
  /** Best first: one candidate per prefill or mixed worker with room. */
  | { readonly kind: "placed"; readonly candidates: readonly [Candidate, ...Candidate[]] }
  /** Workers that could do it are there, but have no room now. */
  | { readonly kind: "full"; readonly message: string }
  /** No worker, or no pair with one layout, could do it. */
  | { readonly kind: "no_worker"; readonly message: string };

/** Whether a worker failed this request just now: `avoid` it if there is any other, or do not use it yet at all. */
export type Exclusion = "none" | "avoid" | "forbid";

export interface ChoiceOptions extends FetchOptions {
  /** Whether a decode worker may compute the prompt itself where no prefill worker could. */
  readonly mayPrefillLocally: boolean;
  /** How much of the prompt each worker has. */
  readonly cachedTokensOf: CachedTokensOf;
  /** What stores have of it for a worker's layout. Absent: there are no stores. */
  readonly storedPrefixesOf?: StoredPrefixesOf | undefined;
}

interface Standing {
  readonly worker: AttachedWorker;
  readonly load: ReckonedLoad;
  /** Of the prompt, in its cache. */
  readonly cachedTokenCount: number;
}

/** The workers of one layout, split by what they do for the request. */
interface LayoutGroup {
  prefillers: Standing[];
  /** Whether a decode worker could take the request if it were idle. */
  hasDecoder: boolean;
  /** For each number format of KV, the decode worker with room that has the most free blocks left, when it reuses what it has of the prompt. */
  bestDecoders: Map<WorkerFacts["kvDtype"], Standing>;
  /** Decode workers with room. */
  decoders: Standing[];
}

/**
 * Where a request runs: the placement with the lowest predicted TTFT; ties go to more free blocks on the decode worker, then on the
 * prefill worker, then to the smaller ids. Which decode worker is used does not change the TTFT, since prefill samples the first
 * token, as long as KV comes to all of them as quickly; so per layout the best decode worker is the same for all prefill workers, and the cost is
 * linear in the workers. Where KV is known to come slowly to it, some others are looked at too. Pairs whose KV has one number format come before
 * those that would convert it, which is approximate.
 *
 * Where that is not possible, in this order: a decode worker computes the prompt itself; a worker that failed the request is tried again.
 *
 * After DistServe (Zhong et al., OSDI 2024, §4.3: shortest prefill queue, least loaded decode) with queues and pools taken from
 * reserved load.
 */
export function choosePlacement(
  workers: Iterable<AttachedWorker>,
  request: RequestShape,
  reservedOf: (incarnation: string) => Reserved,
  exclusionOf: (worker: AttachedWorker) => Exclusion,
  options: ChoiceOptions,
): ChoiceOutcome {
  const usable: AttachedWorker[] = [];
  const avoided: AttachedWorker[] = [];
  let forbiddenCount = 0;
  for (const worker of workers) {
    if (worker.facts.model !== request.model || !isOpen(worker)) continue;
    const exclusion = exclusionOf(worker);
    if (exclusion === "none") usable.push(worker);
    else if (exclusion === "avoid") avoided.push(worker);
    else forbiddenCount++;
  }
  const wide = avoided.length === 0 ? [usable] : [usable, [...usable, ...avoided]];
  let message = "";
  for (const among of wide) {
    const outcome = chooseAmong(among, request, reservedOf, options);
    if (outcome.kind !== "no_worker") return outcome;
    const local = options.mayPrefillLocally ? chooseLocal(among, request, reservedOf, options) : undefined;
    if (local !== undefined) return local;
    message = outcome.message;
  }
  if (forbiddenCount > 0) message += `, apart from ${forbiddenCount} that just failed this request`;
  return { kind: "no_worker", message };
}

function chooseAmong(
  workers: readonly AttachedWorker[],
  request: RequestShape,
  reservedOf: (incarnation: string) => Reserved,
  options: ChoiceOptions,
): ChoiceOutcome {
  const groups = new Map<string, LayoutGroup>();
  const mixed: Standing[] = [];
  const standings = workers.map((worker) => standingOf(worker, reservedOf, options));
  const holdings = new LongestHoldings(standings);
  for (const standing of standings) {
    const { facts } = standing.worker;
    const isDecoder = canDecode(facts, request);
    if (!isDecoder && !canPrefill(facts, request)) continue;
    if (facts.role === "mixed") {
      mixed.push(standing);
      continue;
    }
    let group = groups.get(facts.fingerprint);
    if (group === undefined) {
      group = { prefillers: [], hasDecoder: false, bestDecoders: new Map(), decoders: [] };
      groups.set(facts.fingerprint, group);
    }
    if (!isDecoder) group.prefillers.push(standing);
    else addDecoder(group, standing, request);
  }

  const speed = slowest(workers, (worker) => worker.load?.prefillTokensPerSecond ?? 0, Math.min);
  const step = slowest(workers, (worker) => worker.load?.decodeStepMs ?? 0, Math.max);
  const guesses = {
    ...options,
    prefillTokensPerSecond: speed ?? options.prefillTokensPerSecond,
    decodeStepMs: step ?? options.decodeStepMs,
  };
  const candidates: Candidate[] = [];
  for (const standing of mixed) {
    const { facts } = standing.worker;
    if (decodeBlockCount(request, facts.blockSize) > standing.load.freeBlockCount) continue;
    candidates.push(aggregatedCandidate(standing, holdings, request, guesses));
  }
  for (const { prefillers, bestDecoders, decoders } of groups.values()) {
    const [any, ...more] = bestDecoders.values();
    if (any === undefined) continue;
    const bestOfAll = more.reduce(freer, any);
    for (const standing of prefillers) {
      const { facts } = standing.worker;
      const bestDecoder = bestDecoders.get(facts.kvDtype) ?? bestOfAll;
      if (prefillBlockCount(request, facts.blockSize) > standing.load.freeBlockCount) continue;
      const [best] = receiversOf(standing, bestDecoder, decoders, guesses)
        .map((decoder) => splitCandidate(standing, decoder, holdings, request, guesses))
        .sort(byPreference);
      if (best !== undefined) candidates.push(best);
    }
  }
  candidates.sort(byPreference);
  const [best, ...others] = candidates;
  if (best !== undefined) return { kind: "placed", candidates: [best, ...others] };
  const isCapable = mixed.length > 0 || [...groups.values()].some((g) => g.hasDecoder && g.prefillers.length > 0);
  return isCapable
    ? { kind: "full", message: shortage(mixed, groups, request) }
    : { kind: "no_worker", message: absence(workers, request) };
}

/** A decode worker for both phases; undefined where none could take the request. */
function chooseLocal(
  workers: readonly AttachedWorker[],
  request: RequestShape,
  reservedOf: (incarnation: string) => Reserved,
  options: ChoiceOptions,
): ChoiceOutcome | undefined {
  const standings = workers.map((worker) => standingOf(worker, reservedOf, options));
  const holdings = new LongestHoldings(standings);
  const decoders = standings.filter(({ worker }) => canDecode(worker.facts, request));
  const [best, ...others] = decoders
    .filter(({ worker, load }) => decodeBlockCount(request, worker.facts.blockSize) <= load.freeBlockCount)
    .map((standing) => ({ ...aggregatedCandidate(standing, holdings, request, options), isLocalPrefill: true }))
    .sort(byPreference);
  if (best !== undefined) return { kind: "placed", candidates: [best, ...others] };
  return decoders.length === 0 ? undefined : { kind: "full", message: shortage(decoders, new Map(), request) };
}

function standingOf(
  worker: AttachedWorker,
  reservedOf: (incarnation: string) => Reserved,
  { cachedTokensOf }: ChoiceOptions,
): Standing {
  return {
    worker,
    load: reckonLoad(worker, reservedOf(worker.incarnation)),
    cachedTokenCount: cachedTokensOf(worker.facts),
  };
}

function addDecoder(group: LayoutGroup, standing: Standing, request: RequestShape): void {
  group.hasDecoder = true;
  const { facts } = standing.worker;
  if (decodeBlockCount(request, facts.blockSize) > standing.load.freeBlockCount) return;
  group.decoders.push(standing);
  const best = group.bestDecoders.get(facts.kvDtype);
  group.bestDecoders.set(facts.kvDtype, best === undefined ? standing : freer(best, standing));
}

/** The one with more room, then the smaller id. */
function freer(a: Standing, b: Standing): Standing {
  const difference = roomWithReuse(a) - roomWithReuse(b);
  return difference > 0 || (difference === 0 && a.worker.facts.workerId < b.worker.facts.workerId) ? a : b;
}

/** Decode workers that could take a prefill worker's KV: the best, and a few more where it would come slowly to that. */
function receiversOf(
  prefill: Standing,
  best: Standing,
  decoders: readonly Standing[],
  options: ChoiceOptions,
): readonly Standing[] {
  if (!comesSlowly(prefill.worker, best.worker, options)) return [best];
  const { kvDtype } = best.worker.facts;
  const others = decoders.filter((decoder) => decoder !== best && decoder.worker.facts.kvDtype === kvDtype);
  others.sort((a, b) => (freer(a, b) === a ? -1 : 1));
  return [best, ...others.slice(0, OTHER_RECEIVERS_MAX)];
}

/** Blocks that are free, or need not be taken. */
function roomWithReuse({ worker, load, cachedTokenCount }: Standing): number {
  return load.freeBlockCount + cachedTokenCount / worker.facts.blockSize;
}

/** What is computed where, and what is fetched for it instead. */
type Source = Pick<Candidate, "fetch" | "recompute" | "uncachedTokenCount" | "prefillTokensPerSecond">;

function sourceOf(
  standing: Standing,
  holdings: LongestHoldings,
  request: RequestShape,
  options: ChoiceOptions,
): Source {
  const { worker, cachedTokenCount } = standing;
  const prefillTokensPerSecond = worker.load?.prefillTokensPerSecond || options.prefillTokensPerSecond;
  const msBeyond = (tokenCount: number) => ((request.promptTokenCount - tokenCount) / prefillTokensPerSecond) * 1_000;
  const plan = holdings.planFor(standing, options.storedPrefixesOf?.(worker.facts) ?? [], msBeyond, options);
  const isFetched = plan !== undefined && isWorthFetching(plan);
  return {
    fetch: isFetched ? plan : undefined,
    recompute: isFetched ? undefined : plan,
    uncachedTokenCount: request.promptTokenCount - (isFetched ? plan.tokenEnd : cachedTokenCount),
    prefillTokensPerSecond,
  };
}

/** It is fetched while others are computed. */
function withFetch(ttft: TtftParts, { fetch }: Source): TtftParts {
  return fetch === undefined ? ttft : { ...ttft, queueMs: Math.max(ttft.queueMs, fetch.fetchMs) };
}

function aggregatedCandidate(
  standing: Standing,
  holdings: LongestHoldings,
  request: RequestShape,
  options: ChoiceOptions,
): Candidate {
  const { worker, load } = standing;
  const source = sourceOf(standing, holdings, request, options);
  const stepMs = worker.load?.decodeStepMs || options.decodeStepMs;
  const stepInProgressMs = load.sequenceCount > 0 ? stepMs : 0;
  const ttft = aggregatedTtft(
    load.queuedPromptTokenCount,
    source.uncachedTokenCount,
    source.prefillTokensPerSecond,
    stepInProgressMs,
  );
  return candidate("aggregated", undefined, standing, { ...source, ttft: withFetch(ttft, source), stepMs }, options);
}

function splitCandidate(
  prefill: Standing,
  decode: Standing,
  holdings: LongestHoldings,
  request: RequestShape,
  options: ChoiceOptions,
): Candidate {
  const source = sourceOf(prefill, holdings, request, options);
  const stepMs = decode.worker.load?.decodeStepMs || options.decodeStepMs;
  const moved = request.promptTokenCount - decode.cachedTokenCount;
  const queueMs = (prefill.load.queuedPromptTokenCount / source.prefillTokensPerSecond) * 1_000;
  const handOver = handOverOf(prefill.worker, decode.worker, { moved, queueMs }, options);
  const ttft = splitTtft(
    prefill.load.queuedPromptTokenCount,
    source.uncachedTokenCount,
    source.prefillTokensPerSecond,
    handOver.transferMs,
    options,
  );
  return candidate("split", prefill, decode, { ...source, handOver, ttft: withFetch(ttft, source), stepMs }, options);
}

function candidate(
  mode: Candidate["mode"],
  prefill: Standing | undefined,
  decode: Standing,
  costs: Source & Pick<Candidate, "handOver" | "ttft"> & { readonly stepMs: number },
  options: PredictionOptions,
): Candidate {
  const { ttft, stepMs, ...source } = costs;
  const { worker, load } = decode;
  return {
    mode,
    isLocalPrefill: false,
    prefill: prefill?.worker,
    decode: worker,
    ttftMs: ttft.queueMs + ttft.computeMs + ttft.tailMs,
    ttft,
    ...source,
    tbtMs: predictTbtMs(stepMs, worker.load?.runningCount ?? 0, load.sequenceCount, options),
    freeBlockCount: load.freeBlockCount,
    prefillFreeBlockCount: prefill?.load.freeBlockCount ?? 0,
    sequenceCount: load.sequenceCount,
  };
}

/** A total order, so that one state always gives one choice. Times closer than a microsecond are equal. */
function byPreference(a: Candidate, b: Candidate): number {
  return (
    Number(convertsKv(a)) - Number(convertsKv(b)) ||
    Math.round(a.ttftMs * 1_000) - Math.round(b.ttftMs * 1_000) ||
    b.freeBlockCount - a.freeBlockCount ||
    b.prefillFreeBlockCount - a.prefillFreeBlockCount ||
    compareIds(a.decode.facts.workerId, b.decode.facts.workerId) ||
    compareIds(a.prefill?.facts.workerId ?? "", b.prefill?.facts.workerId ?? "")
  );
}

function convertsKv({ prefill, decode }: Candidate): boolean {
  return prefill !== undefined && prefill.facts.kvDtype !== decode.facts.kvDtype;
}

function compareIds(a: string, b: string): number {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}

/** The worst measured value: a fair guess for a worker of the same model that has measured nothing. */
function slowest(
  workers: readonly AttachedWorker[],
  measured: (worker: AttachedWorker) => number,
  worse: (a: number, b: number) => number,
): number | undefined {
  let found: number | undefined;
  for (const worker of workers) {
    const value = measured(worker);
    if (value > 0) found = found === undefined ? value : worse(found, value);
  }
  return found;
}

function shortage(mixed: readonly Standing[], groups: ReadonlyMap<string, LayoutGroup>, request: RequestShape): string {
  const needs: string[] = [];
  const prefillers = [...groups.values()].flatMap((group) => group.prefillers);
  const fullest = (standings: readonly Standing[]): string =>
    standings
      .map(({ worker, load }) => `${worker.facts.workerId} ${load.freeBlockCount}`)
      .sort()
      .slice(0, 4)
      .join(", ");
  const blockSize = (mixed[0] ?? prefillers[0])?.worker.facts.blockSize ?? 32;
  if (mixed.length > 0) {
    needs.push(`${decodeBlockCount(request, blockSize)} blocks on a mixed worker (free: ${fullest(mixed)})`);
  }
  if ([...groups.values()].some((group) => group.hasDecoder && group.bestDecoders.size === 0)) {
    needs.push(`${decodeBlockCount(request, blockSize)} blocks on a decode worker`);
  } else if (prefillers.length > 0) {
    needs.push(`${prefillBlockCount(request, blockSize)} blocks on a prefill worker (free: ${fullest(prefillers)})`);
  }
  return `all workers are full: the request needs ${needs.join(", or ")}`;
}

function absence(workers: readonly AttachedWorker[], request: RequestShape): string {
  const decoders = workers.filter((worker) => canDecode(worker.facts, request));
  const prefillers = workers.filter((worker) => canPrefill(worker.facts, request));
  const attached = `model ${JSON.stringify(request.model)} has`;
  if (decoders.length === 0 && prefillers.length === 0) return `${attached} no live worker attached`;
  if (decoders.length === 0) return `${attached} no live decode or mixed worker attached that could take the request`;
  if (prefillers.length === 0) return `${attached} no live prefill worker attached that could take the prompt`;
  const pairs = prefillers.flatMap((prefill) => decoders.map((decode) => [prefill.facts, decode.facts] as const));
  const reasons = pairs.map(([a, b]) => `${a.workerId} and ${b.workerId} (${kvDifference(a, b)})`);
  return `${attached} no prefill and decode worker that could exchange KV: ${reasons.slice(0, PAIRS_NAMED_MAX).join("; ")}`;
}

/** Pairs that an error names: enough to see what differs. */
const PAIRS_NAMED_MAX = 4;

/** The candidate that uses a prefill worker comes first, if there is one. */
export function preferPrefill(
  outcome: Extract<ChoiceOutcome, { readonly kind: "placed" }>,
  workerId: string,
): ChoiceOutcome {
  const kept = outcome.candidates.find(({ prefill }) => prefill !== undefined && prefill.facts.workerId === workerId);
  if (kept === undefined) return outcome;
  return { kind: "placed", candidates: [kept, ...outcome.candidates.filter((candidate) => candidate !== kept)] };
}
