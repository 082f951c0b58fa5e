import { assert } from "../assert.ts";
import {
  type CodecLevelFacts,
  fetchMs,
  KV_ACCURACIES,
  type KvAccuracy,
  type KvChunkFacts,
  type LinkFacts,
} from "./fetch-time.ts";

export interface TransferQuestion {
  /** What is still to come, in the order of the text. */
  readonly chunks: readonly KvChunkFacts[];
  /** At least one of them exact. */
  readonly levels: readonly CodecLevelFacts[];
  readonly link: LinkFacts;
  /** The least exact accuracy that the request allows. */
  readonly budget: KvAccuracy;
  /** Until all of it must be there; undefined: as soon as possible, and nothing is worth an error then. */
  readonly deadlineMs: number | undefined;
  /** Whether the receiver may compute chunks instead. */
  readonly mayCompute: boolean;
  /** Until it has computed what it is at. */
  readonly computeBusyMs: number;
}

/** Part of the time left in which KV has to travel by a plan. Larger: more of it is exact; smaller: less of it is late. */
const TRAVEL_SHARE = 0.7;
/** How finely the least speed that does is searched for, and the most time to spare. */
const HALVINGS = 6;

export interface TransferPlan {
  /** Chunks at the front that are computed while the others travel. */
  readonly computedCount: number;
  /** Of each chunk behind them, in order. */
  readonly levels: readonly CodecLevelFacts[];
  /** Of the link, which was planned for. */
  readonly bytesPerMs: number;
  /** At that speed. */
  readonly predictedMs: number;
  /** At that speed; with time to spare for what travels, where any plan has that. */
  readonly meetsDeadline: boolean;
}

/**
 * Chooses for each chunk between computing it and fetching it at some level.
 *
 * The most exact accuracy within the budget that meets the deadline is taken; where a coarser one is needed, only for as many chunks as it is,
 * those at the end of the text, since later tokens are attended to by fewer. Among plans as exact, that which computes least and still meets the
 * deadline, with KV that comes no later than computing everything would.
 *
 * What has a deadline is planned for the speed that the link may fall to: KV that comes too early costs some accuracy that the request allowed to
 * lose, KV that comes too late costs its objective. Where nothing meets the deadline at that speed, the plan that needs the least speed to meet it;
 * where nothing does at the usual speed either, the one that has most time to spare; where none has any, or there is no deadline, the soonest.
 *
 * Asked again before each chunk, with what was measured meanwhile, this is CacheGen's loop (Liu et al., SIGCOMM 2024, section 5.3), with two
 * changes: chunks at the front are computed while those behind them travel (a chunk can be computed only when all before it is there, and the
 * front is cheapest to compute), where CacheGen computes all or fetches the next; and encoding and decoding take time here.
 *
 * Predicted times are hints: a wrong one costs time, never exactness.
 */
export function planTransfer(question: TransferQuestion): TransferPlan {
  const { link, deadlineMs } = question;
  if (deadlineMs === undefined) return planFor(question, link.bytesPerMs, TRAVEL_SHARE, ["exact"]);
  const allowed = KV_ACCURACIES.slice(0, KV_ACCURACIES.indexOf(question.budget) + 1);
  const { lowBytesPerMs, bytesPerMs } = link;
  const atSpeed = (speed: number) => planFor(question, speed, TRAVEL_SHARE, allowed);
  const feared = atSpeed(lowBytesPerMs);
  if (feared.meetsDeadline) return feared;
  const usual = atSpeed(bytesPerMs);
  if (usual.meetsDeadline) return leastDemanding(atSpeed, lowBytesPerMs, bytesPerMs) ?? usual;
  const withShare = (share: number) => planFor(question, bytesPerMs, share, allowed);
  const tight = withShare(1);
  return tight.meetsDeadline ? (leastDemanding(withShare, TRAVEL_SHARE, 1) ?? tight) : tight;
}

/** Between a demand that nothing meets the deadline by and one that a plan does: a plan by about the least that one does. */
function leastDemanding(planBy: (demand: number) => TransferPlan, low: number, high: number): TransferPlan | undefined {
  let [less, more] = [low, high];
  let best: TransferPlan | undefined;
  for (let halving = 0; halving < HALVINGS; halving++) {
    const middle = Math.sqrt(less * more);
    const plan = planBy(middle);
    if (plan.meetsDeadline) [best, more] = [plan, middle];
    else less = middle;
  }
  return best;
}

/** What is asked, for a link of one speed. */
interface Attempt extends TransferQuestion {
  /** Part of the time left in which KV has to travel. */
  readonly travelShare: number;
}

function planFor(
  asked: TransferQuestion,
  bytesPerMs: number,
  travelShare: number,
  allowed: readonly KvAccuracy[],
): TransferPlan {
  const question: Attempt = { ...asked, link: { ...asked.link, bytesPerMs }, travelShare };
  const uniform = (accuracy: KvAccuracy) =>
    question.levels
      .filter((level) => level.accuracy === accuracy)
      .map((level) => uniformPlan(question, level))
      .reduce<TransferPlan | undefined>((best, plan) => (best && !isBetter(plan, best) ? best : plan), undefined);
  const plans: TransferPlan[] = [];
  for (const [index, accuracy] of allowed.entries()) {
    const plan = uniform(accuracy);
    if (plan?.meetsDeadline) return index === 0 ? plan : refined(question, plan, allowed[index - 1] as KvAccuracy);
    if (plan) plans.push(plan);
  }
  assert(plans[0] !== undefined, "there is no exact codec level");
  return soonest(plans);
}

/** All fetched chunks at one level. */
function uniformPlan(question: Attempt, level: CodecLevelFacts): TransferPlan {
  const { chunks, deadlineMs, mayCompute, computeBusyMs } = question;
  const all = chunks.map(() => level);
  const plan = (computedCount: number) => planned(question, computedCount, all.slice(computedCount));
  if (!mayCompute) return plan(0);
  /** The least count for which it holds, where it holds for all above; `chunks.length` where for none below. */
  const least = (holds: (count: number) => boolean) => {
    let [low, high] = [0, chunks.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (holds(middle)) high = middle;
      else low = middle + 1;
    }
    return low;
  };
  const computedMs = (count: number) => computeBusyMs + computeMs(chunks, count);
  if (deadlineMs !== undefined) {
    // Fetching takes less long the fewer travel: with as many computed as can be it is in time, or never.
    const most = Math.max(
      0,
      least((count) => computedMs(count + 1) > deadlineMs),
    );
    const fewest = least((count) => count >= most || plan(count).meetsDeadline);
    if (plan(fewest).meetsDeadline) return plan(fewest);
  }
  // Computing takes longer with each chunk, fetching the rest less long: the soonest plan is where they meet.
  const meeting = least((count) => computedMs(count) >= fetchMs(chunks, all, question.link, count));
  return soonest(meeting === 0 ? [plan(0)] : [plan(meeting - 1), plan(meeting)]);
}

/** The same with as many chunks from the front at a better accuracy as the deadline allows. */
function refined(question: Attempt, coarse: TransferPlan, accuracy: KvAccuracy): TransferPlan {
  let best = coarse;
  for (const level of question.levels.filter((level) => level.accuracy === accuracy)) {
    const mixed = (count: number) =>
      planned(
        question,
        coarse.computedCount,
        coarse.levels.map((own, index) => (index < count ? level : own)),
      );
    let low = 0;
    let high = coarse.levels.length;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (mixed(middle).meetsDeadline) low = middle;
      else high = middle - 1;
    }
    const count = (plan: TransferPlan) => plan.levels.filter((own) => own.accuracy === accuracy).length;
    if (low > count(best)) best = mixed(low);
  }
  return best;
}

function planned(question: Attempt, computedCount: number, levels: readonly CodecLevelFacts[]): TransferPlan {
  const { chunks, link, deadlineMs, mayCompute, computeBusyMs, travelShare } = question;
  const fetched = chunks.slice(computedCount);
  const fetchingMs = fetched.length === 0 ? 0 : fetchMs(fetched, levels, link);
  const computingMs = computedCount === 0 ? 0 : computeBusyMs + computeMs(chunks, computedCount);
  const predictedMs = Math.max(computingMs, fetchingMs);
  const plan = { computedCount, levels, bytesPerMs: link.bytesPerMs, predictedMs };
  if (deadlineMs === undefined) return { ...plan, meetsDeadline: false };
  // Computing is as quick as it was and needs no margin; and what might take longer than computing is not worth beginning.
  const textMs = mayCompute ? computeBusyMs + computeMs(chunks, chunks.length) : Number.POSITIVE_INFINITY;
  const meetsDeadline = computingMs <= deadlineMs && fetchingMs <= Math.min(travelShare * deadlineMs, textMs);
  return { ...plan, meetsDeadline };
}

function computeMs(chunks: readonly KvChunkFacts[], count: number): number {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += (chunks[i] as KvChunkFacts).computeMs;
  return sum;
}

function isBetter(plan: TransferPlan, than: TransferPlan): boolean {
  if (plan.meetsDeadline !== than.meetsDeadline) return plan.meetsDeadline;
  if (plan.meetsDeadline && plan.computedCount !== than.computedCount) return plan.computedCount < than.computedCount;
  return plan.predictedMs < than.predictedMs;
}

function soonest(plans: readonly TransferPlan[]): TransferPlan {
  return plans.reduce((best, plan) => (plan.predictedMs < best.predictedMs ? plan : best));
}
