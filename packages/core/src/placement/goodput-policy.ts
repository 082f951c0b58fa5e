import type { Instant } from "../time.ts";
import { type Candidate, choosePlacement } from "./choose-placement.ts";
import { type AttachedWorker, isOpen } from "./cluster-view.ts";
import { isWorthFetching, LongestHoldings, type PrefixFetchPlan } from "./fetch-plan.ts";
import { canDecode, canPrefill } from "./fit.ts";
import { type HandOver, handOverOf } from "./hand-over.ts";
import type { PlacementPolicy, PlacementQuestion, PolicyOutcome, RequestOutcome } from "./placement-policy.ts";
import { Receivers } from "./receivers.ts";
import type { RequestKey } from "./reservations.ts";
import { Trials } from "./trials.ts";
import { WorkLedger } from "./work-ledger.ts";
import { decodeBlockCount, prefillBlockCount, type RequestShape } from "./worker-facts.ts";
import { type FleetCost, fleetCostOf, WorkerOutlook } from "./worker-outlook.ts";

export interface GoodputOptions {
  /** Tokens that workers compute in a step, at most. */
  readonly stepTokenCount: number;
  /** Usual error of a predicted time, as a share of it. Larger: targets are kept away from; smaller: workers are filled to the brim. */
  readonly doubt: number;
  /** Share of a TBT target that a prompt computed on a decode worker may fill. Larger: more prompts there, less headroom. */
  readonly localShareMax: number;
  /**
   * A request of usual cost whose chance to meet its targets is below is refused early. Larger: refuses what would have made it; smaller: wastes
   * work.
   */
  readonly chanceMin: number;
  /** Least chance that is asked of the most expensive requests. Larger: long prompts are refused sooner when it gets full; smaller: they make others late. */
  readonly chanceMinCostly: number;
  /**
   * The same for the TBT target alone, which is to be nearer to certain: one answer too many makes all answers of its worker late, and not
   * only itself.
   */
  readonly tbtChanceMin: number;
  /** Workers looked at for one request beside those that have most of its prompt. Larger: better choices; smaller: cheaper ones. */
  readonly sampleMax: number;
}

export const GOODPUT_DEFAULTS: GoodputOptions = {
  stepTokenCount: 512,
  doubt: 0.15,
  localShareMax: 0.9,
  chanceMin: 0.3,
  chanceMinCostly: 0.7,
  tbtChanceMin: 0.5,
  sampleMax: 32,
};

/** Times of messages and steps in progress, below which no prediction is more exact. */
const DOUBT_MIN_MS = 15;

/** What a millisecond of TBT counts beside one of TTFT, at the target. Larger: decodes spread out; smaller: caches are followed further. */
const TBT_PRICE = 10;
/** A worker's time is at most one over this as dear as an idle one's. Larger: decode workers compute more prompts themselves. */
const SCARCITY_MARGIN = 0.05;

const FLEET_COST_EVERY_MS = 100;

/** Least chance that is asked of any request. */
const CHANCE_MIN_CHEAP = 0.1;
/** Weight of the newest request in the usual cost. */
const USUAL_COST_GAIN = 0.02;

interface Scored {
  readonly candidate: Candidate;
  /** That both targets are met. */
  readonly chance: number;
  /** That the TBT target is. */
  readonly tbtChance: number;
  /** The first in steps that count as equal. */
  readonly chanceStep: number;
  /** What it costs: lower is better among equal chances. */
  readonly priceUs: number;
  readonly prefillMs: number;
  readonly besideMs: number;
  readonly contextTokenCount: number;
  /** Device time of prompt and answer, beside what runs there anyway. */
  readonly deviceMs: number;
}

/**
 * One decision over mode, prefill worker and decode worker that maximises the expected goodput: requests that meet both their targets, for the
 * least device time. A candidate's chance is that its predicted TTFT and TBT, with their usual errors, are within the targets, and that the
 * strictest target on its decode worker is still met with it there. Among candidates whose chance is as good as the best, the cheapest
 * wins: the device time it takes, and its own TTFT and TBT, which count the more the nearer they are to their targets. So a cache is used as long as
 * its owner's queue leaves time, and a prompt goes elsewhere, where it is computed once more and cached too, before the queue costs
 * the target. A decode worker computes a prompt itself where its decodes have time left and that is better.
 *
 * What is likely late is refused at once. Where device time is short, most requests are served by those that have the best chance for the least of
 * it (the greedy rule of the knapsack problem), so the chance that is asked for grows with a request's cost beside the usual one. Where nothing runs a
 * prediction of lateness is put to the test now and then (`Trials`).
 *
 * Requests without objectives are placed by `choosePlacement`, and so are those that do not fit now.
 *
 * After DistServe (OSDI 2024; both targets count), Mooncake (FAST 2025, §6: cache against queue, early rejection at the predicted end of
 * prefill), and power-of-two choices (Mitzenmacher, 2001) where the fleet is large.
 */
export class GoodputPolicy implements PlacementPolicy {
  readonly #options: GoodputOptions;
  readonly #ledger = new WorkLedger();
  readonly #trials = new Trials();
  readonly #fleetCosts = new Map<string, { readonly cost: FleetCost; readonly at: Instant }>();
  /** What the last choice came from, until it is told that it was placed. */
  #last: readonly Scored[] = [];
  #answerTokens = 0;
  #turn = 0;
  /** Device time of requests of late. */
  #usualDeviceMs = 0;

  constructor(options: Partial<GoodputOptions> = {}) {
    this.#options = { ...GOODPUT_DEFAULTS, ...options };
  }

  choose(question: PlacementQuestion): PolicyOutcome {
    const { workers, request, reservedOf, exclusionOf, options } = question;
    this.#last = [];
    this.#answerTokens = question.answer.meanTokens;
    if (request.objectives === undefined) {
      return choosePlacement(workers, request, reservedOf, exclusionOf, options);
    }
    const scored = this.#score(question);
    scored.sort(byGoodput);
    const [best, ...others] = scored;
    if (best === undefined) return choosePlacement(workers, request, reservedOf, exclusionOf, options);
    const chanceMin = this.#chanceMinAt(best.deviceMs);
    const isLate = best.chance < chanceMin || best.tbtChance < this.#options.tbtChanceMin;
    const { candidate } = best;
    const isTrial =
      isLate && this.#trials.isDue(request.model, candidate, request.objectives, question.waitedMs, question.now);
    if (isLate && !isTrial && !request.objectives.mayBeLate) return late(best, chanceMin, question);
    if (isTrial) scored[0] = { ...best, candidate: { ...candidate, isTrial } };
    this.#last = scored;
    return {
      kind: "placed",
      candidates: [scored[0]?.candidate ?? candidate, ...others.map((other) => other.candidate)],
    };
  }

  placed(key: RequestKey, candidate: Candidate, request: RequestShape, now: Instant): void {
    this.#trials.placed(request.model, now);
    // What was placed without a price is work all the same.
    const { computeMs } = candidate.ttft;
    const contextTokenCount = request.promptTokenCount + this.#answerTokens / 2;
    const scored = this.#last.find((entry) => entry.candidate === candidate);
    const entry = scored ?? { prefillMs: computeMs, besideMs: computeMs, contextTokenCount };
    this.#ledger.placed(
      key,
      {
        prefillOn: (candidate.prefill ?? candidate.decode).incarnation,
        prefillMs: entry.prefillMs,
        besideMs: entry.besideMs,
        decodeOn: candidate.decode.incarnation,
        contextTokenCount: entry.contextTokenCount,
        predicted:
          scored === undefined
            ? undefined
            : { ttftMs: isLinkBound(candidate) ? undefined : candidate.ttftMs, tbtMs: candidate.tbtMs },
        answerMs: this.#answerTokens * candidate.tbtMs,
        tbtTargetMs: request.objectives?.tbtMs ?? Number.POSITIVE_INFINITY,
      },
      now,
    );
    this.#last = [];
  }

  firstToken(key: RequestKey, now: Instant): void {
    this.#ledger.firstToken(key, now);
  }

  ended(key: RequestKey, now: Instant, outcome?: RequestOutcome): void {
    this.#ledger.ended(key, now, outcome);
  }

  #chanceMinAt(deviceMs: number): number {
    this.#usualDeviceMs += (this.#usualDeviceMs === 0 ? 1 : USUAL_COST_GAIN) * (deviceMs - this.#usualDeviceMs);
    const { chanceMin, chanceMinCostly } = this.#options;
    const asked = (chanceMin * deviceMs) / Math.max(this.#usualDeviceMs, Number.MIN_VALUE);
    return Math.max(CHANCE_MIN_CHEAP, Math.min(chanceMinCostly, asked));
  }

  #score(question: PlacementQuestion): Scored[] {
    const { request, reservedOf, options, now, answer } = question;
    const contextTokenCount = request.promptTokenCount + answer.meanTokens / 2;
    const prefills: WorkerOutlook[] = [];
    const decodes: WorkerOutlook[] = [];
    const looked = this.#look(question);
    const settings = {
      ...options,
      stepTokenCount: this.#options.stepTokenCount,
      fleet: this.#fleetCost(request.model, looked, now),
    };
    const outlooks: WorkerOutlook[] = [];
    for (const worker of looked) {
      const { facts } = worker;
      const cached = options.cachedTokensOf(facts);
      const work = this.#ledger.standing(worker.incarnation, now);
      const outlook = new WorkerOutlook(worker, reservedOf(worker.incarnation), cached, work, settings);
      outlooks.push(outlook);
      const { freeBlockCount } = outlook.load;
      const cachedBlockCount = Math.floor(cached / facts.blockSize);
      if (canDecode(facts, request)) {
        if (decodeBlockCount(request, facts.blockSize) - cachedBlockCount <= freeBlockCount) decodes.push(outlook);
      } else if (canPrefill(facts, request)) {
        if (prefillBlockCount(request, facts.blockSize) - cachedBlockCount <= freeBlockCount) prefills.push(outlook);
      }
    }
    const holdings = new LongestHoldings(outlooks);
    const scored: Scored[] = [];
    for (const decode of decodes) {
      const best = this.#sources(decode, holdings, question)
        .flatMap((source) => this.#both(decode, source, contextTokenCount, question))
        .sort(byGoodput)[0];
      if (best !== undefined) scored.push(best);
    }
    const receivers = new Receivers(decodes, contextTokenCount);
    for (const prefill of prefills) {
      const among = receivers.for(prefill, options);
      if (among.length === 0) continue;
      const sources = this.#sources(prefill, holdings, question);
      const queueMs = prefill.queueMs();
      const [best] = among
        .flatMap((decode) => {
          const moved = request.promptTokenCount - decode.cachedTokenCount;
          const handOver = handOverOf(prefill.worker, decode.worker, { moved, queueMs }, options);
          const pair = { prefill, decode, handOver };
          return sources.map((source) => this.#split(pair, source, contextTokenCount, question));
        })
        .sort(byGoodput);
      if (best !== undefined) scored.push(best);
    }
    return scored;
  }

  /** Where a worker could have the prompt's beginning from: its own cache, and that of who has more of it. */
  #sources(worker: WorkerOutlook, holdings: LongestHoldings, { request, options }: PlacementQuestion): Source[] {
    const { cachedTokenCount } = worker;
    const msBeyond = (tokenCount: number) => worker.computeMs(request.promptTokenCount, tokenCount);
    const plan = holdings.planFor(worker, options.storedPrefixesOf?.(worker.worker.facts) ?? [], msBeyond, options);
    const own: Source = { thereCount: cachedTokenCount, fetch: undefined, recompute: plan };
    if (plan === undefined || !isWorthFetching(plan)) return [own];
    return [own, { thereCount: plan.tokenEnd, fetch: plan, recompute: undefined }];
  }

  /** Prompt and answer on one worker. */
  #both(decode: WorkerOutlook, source: Source, contextTokenCount: number, question: PlacementQuestion): Scored[] {
    const { request } = question;
    const computeMs = decode.computeBesideDecodesMs(request.promptTokenCount, source.thereCount);
    const besideMs = decode.besideMs(request.promptTokenCount, source.thereCount);
    const tbtMs = decode.tbtMs(contextTokenCount, besideMs, 0);
    const isMixed = decode.worker.facts.role === "mixed";
    const strictest = decode.strictestTbtMs;
    if (!isMixed && tbtMs > this.#options.localShareMax * Math.min(strictest, request.objectives?.tbtMs ?? strictest)) {
      return [];
    }
    const ttft = { queueMs: queueMs(decode, source), computeMs, tailMs: 0 };
    const work = { prefillMs: computeMs, besideMs, contextTokenCount };
    return [this.#scored(undefined, decode, source, ttft, { tbtMs, tbtNowMs: tbtMs }, work, question)];
  }

  #split(
    { prefill, decode, handOver }: Pair,
    source: Source,
    contextTokenCount: number,
    question: PlacementQuestion,
  ): Scored {
    const { request, options } = question;
    const computeMs = prefill.computeMs(request.promptTokenCount, source.thereCount);
    const { transferMs } = handOver;
    const ttft = { queueMs: queueMs(prefill, source), computeMs, tailMs: options.handoverMs };
    // KV flows while chunks are computed; what is left of it after the first token delays the second one, spread over all of them.
    const lateMs = Math.max(
      transferMs / Math.ceil(request.promptTokenCount / this.#options.stepTokenCount),
      transferMs - computeMs,
    );
    const restMs = lateMs / Math.max(1, request.maxTokens - 1);
    const tbtMs = decode.tbtMs(contextTokenCount, 0, ttft.queueMs + computeMs) + restMs;
    // A price that fell with the wait would make waiting look cheap.
    const tbtNowMs = decode.tbtMs(contextTokenCount, 0, 0) + restMs;
    const besideMs = prefill.besideMs(request.promptTokenCount, source.thereCount);
    const work = { prefillMs: computeMs, besideMs, contextTokenCount };
    return this.#scored({ outlook: prefill, handOver }, decode, source, ttft, { tbtMs, tbtNowMs }, work, question);
  }

  #scored(
    prefill: { readonly outlook: WorkerOutlook; readonly handOver: HandOver } | undefined,
    decode: WorkerOutlook,
    { thereCount, fetch, recompute }: Source,
    ttft: Candidate["ttft"],
    { tbtMs, tbtNowMs }: { readonly tbtMs: number; readonly tbtNowMs: number },
    work: Pick<Scored, "prefillMs" | "besideMs" | "contextTokenCount">,
    question: PlacementQuestion,
  ): Scored {
    const { request, waitedMs } = question;
    const { ttftMs: ttftTarget = Number.POSITIVE_INFINITY, tbtMs: tbtTarget = Number.POSITIVE_INFINITY } =
      request.objectives ?? {};
    const ttftMs = ttft.queueMs + ttft.computeMs + ttft.tailMs;
    const strictest = Math.min(tbtTarget, decode.strictestTbtMs);
    const tbtChance = this.#within(tbtMs, strictest);
    const ttftChance = this.#within(waitedMs + ttftMs, ttftTarget);
    const chance = ttftChance * tbtChance;
    const urgency = Math.min(1, (waitedMs + ttftMs) / ttftTarget);
    const source = prefill?.outlook ?? decode;
    const candidate: Candidate = {
      mode: prefill === undefined ? "aggregated" : "split",
      isLocalPrefill: prefill === undefined && decode.worker.facts.role !== "mixed",
      prefill: prefill?.outlook.worker,
      decode: decode.worker,
      ttftMs,
      ttft,
      tbtMs,
      prefillTokensPerSecond: source.worker.load?.prefillTokensPerSecond ?? 0,
      uncachedTokenCount: request.promptTokenCount - thereCount,
      fetch,
      recompute,
      handOver: prefill?.handOver,
      freeBlockCount: decode.load.freeBlockCount,
      prefillFreeBlockCount: prefill?.outlook.load.freeBlockCount ?? 0,
      sequenceCount: decode.load.sequenceCount,
    };
    const tbtUrgency = Math.min(1, tbtNowMs / strictest);
    // Where decodes are near their target, a prompt takes time that nothing else can give.
    const scarcity = prefill === undefined ? 1 / (1 + SCARCITY_MARGIN - tbtUrgency) : 1;
    const priceMs = scarcity * work.besideMs + 2 * urgency * ttftMs + TBT_PRICE * tbtUrgency * tbtNowMs;
    const { prefillMs, besideMs, contextTokenCount } = work;
    const deviceMs =
      besideMs +
      2 * Math.max(0, contextTokenCount - question.request.promptTokenCount) * decode.tokenMs(contextTokenCount);
    // In order as things are now: decodes that end meanwhile make waiting possible, not good.
    const chanceNow = ttftChance * this.#within(tbtNowMs, strictest);
    const [chanceStep, priceUs] = [Math.round(chanceNow / CHANCE_STEP), Math.round(priceMs * 1_000)];
    return { candidate, chance, tbtChance, chanceStep, priceUs, prefillMs, besideMs, contextTokenCount, deviceMs };
  }

  /** Chance that what is predicted so ends up below a bound: logistic, of the usual relative error. */
  #within(predictedMs: number, boundMs: number): number {
    if (boundMs === Number.POSITIVE_INFINITY) return 1;
    const doubtMs = Math.max(predictedMs * this.#options.doubt, Math.min(DOUBT_MIN_MS, 0.05 * boundMs));
    return 1 / (1 + Math.exp((-1.7 * (boundMs - predictedMs)) / doubtMs));
  }

  /** Workers' costs change slowly: what no one is believed to be below is found anew now and then. */
  #fleetCost(model: string, looked: readonly AttachedWorker[], now: Instant): FleetCost {
    const known = this.#fleetCosts.get(model);
    if (known?.cost.least !== undefined && (now - known.at) / 1e6 < FLEET_COST_EVERY_MS) return known.cost;
    const cost = fleetCostOf(looked);
    this.#fleetCosts.set(model, { cost, at: now });
    return cost;
  }

  /** Usable workers; of a large fleet those with most of the prompt and a sample that moves on with each request. */
  #look({ workers, request, exclusionOf, options }: PlacementQuestion): readonly AttachedWorker[] {
    const usable: AttachedWorker[] = [];
    for (const worker of workers) {
      if (worker.facts.model === request.model && isOpen(worker) && exclusionOf(worker) === "none") usable.push(worker);
    }
    const { sampleMax } = this.#options;
    if (usable.length <= 2 * sampleMax) return usable;
    const sample = new Set<AttachedWorker>();
    // A stride coprime to most counts visits all workers in turn, and those of each role in their proportion.
    for (let index = 0; index < sampleMax; index++) {
      this.#turn = (this.#turn + 7_919) % usable.length;
      sample.add(usable[this.#turn] as AttachedWorker);
    }
    let most = 0;
    const cached = new Float64Array(usable.length);
    for (let index = 0; index < usable.length; index++) {
      cached[index] = options.cachedTokensOf((usable[index] as AttachedWorker).facts);
      most = Math.max(most, cached[index]!);
    }
    for (let index = 0; most > 0 && index < usable.length && sample.size < 2 * sampleMax; index++) {
      if (cached[index]! >= 0.8 * most) sample.add(usable[index] as AttachedWorker);
    }
    return [...sample];
  }
}

interface Pair {
  readonly prefill: WorkerOutlook;
  readonly decode: WorkerOutlook;
  readonly handOver: HandOver;
}

/** A prompt's beginning that need not be computed. */
interface Source {
  readonly thereCount: number;
  readonly fetch: PrefixFetchPlan | undefined;
  readonly recompute: PrefixFetchPlan | undefined;
}

/**
 * Its first token waits for KV that comes as late, and so as exact, as its target allows, or for a link whose speed was measured more than for
 * the device: how long that takes tells nothing of the worker.
 */
function isLinkBound({ fetch, ttft }: Candidate): boolean {
  if (fetch === undefined || fetch.fetchMs < ttft.queueMs) return false;
  const { accuracy, ageMs } = fetch.rate;
  return accuracy !== "exact" || (ageMs !== undefined && fetch.fetchMs > ttft.computeMs);
}

/** It is fetched while others are computed. */
function queueMs(worker: WorkerOutlook, { fetch }: Source): number {
  return Math.max(worker.queueMs(), fetch?.fetchMs ?? 0);
}

/** Chances closer than this count as equal, so that price decides among them. */
const CHANCE_STEP = 0.05;

function byGoodput(a: Scored, b: Scored): number {
  return (
    b.chanceStep - a.chanceStep ||
    a.priceUs - b.priceUs ||
    a.candidate.tbtMs - b.candidate.tbtMs ||
    b.candidate.freeBlockCount - a.candidate.freeBlockCount ||
    compareIds(a.candidate.decode.facts.workerId, b.candidate.decode.facts.workerId) ||
    compareIds(a.candidate.prefill?.facts.workerId ?? "", b.candidate.prefill?.facts.workerId ?? "")
  );
}

function compareIds(a: string, b: string): number {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}

function late(
  { candidate, chance }: Scored,
  chanceMin: number,
  { request, waitedMs }: PlacementQuestion,
): PolicyOutcome {
  const { ttftMs: ttftTarget, tbtMs: tbtTarget } = request.objectives ?? {};
  const targets = [
    ttftTarget === undefined ? "" : `TTFT ${Math.round(waitedMs + candidate.ttftMs)} ms of ${ttftTarget}`,
    tbtTarget === undefined ? "" : `TBT ${candidate.tbtMs.toFixed(1)} ms of ${tbtTarget}`,
  ];
  const message = `no placement meets the targets: the best would have ${targets.filter((text) => text !== "").join(" and ")}, a chance of ${Math.round(100 * chance)} % (asked of its cost: ${Math.round(100 * chanceMin)} %)`;
  return { kind: "late", message, retryAfterMs: Math.max(100, Math.round(candidate.ttft.queueMs)) };
}
