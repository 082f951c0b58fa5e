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
}

/**
 * Part of the time left that is planned with: speeds change, and what was begun is not taken back. Larger: more of it is exact; smaller: less of it
 * is late.
 */
export const PLANNED_SHARE = 0.6;

export interface TransferPlan {
  /** Chunks at the front that are computed while the others travel. */
  readonly computedCount: number;
  /** Of each chunk behind them, in order. */
  readonly levels: readonly CodecLevelFacts[];
  readonly predictedMs: number;
  readonly meetsDeadline: boolean;
}

/**
 * Chooses for each chunk between computing it and fetching it at some level.
 *
 * The most exact accuracy within the budget that meets the deadline is taken; where a coarser one is needed, only for as many chunks as it is,
 * those at the end of the text, since later tokens are attended to by fewer. Among plans as exact, that which computes least and still meets the
 * deadline. When nothing meets it, or there is none, the soonest.
 *
 * Asked again before each chunk, with what was measured meanwhile, this is CacheGen's loop (Liu et al., SIGCOMM 2024, section 5.3), with two
 * changes: chunks at the front are computed while those behind them travel (a chunk can be computed only when all before it is there, and the
 * front is cheapest to compute), where CacheGen computes all or fetches the next; and encoding and decoding take time here.
 *
 * Predicted times are hints: a wrong one costs time, never exactness.
 */
export function planTransfer(question: TransferQuestion): TransferPlan {
  const allowed = KV_ACCURACIES.slice(0, KV_ACCURACIES.indexOf(question.budget) + 1);
  const uniform = (accuracies: readonly KvAccuracy[]) =>
    question.levels
      .filter((level) => accuracies.includes(level.accuracy))
      .map((level) => uniformPlan(question, level))
      .reduce<TransferPlan | undefined>((best, plan) => (best && !isBetter(plan, best) ? best : plan), undefined);
  const exact = uniform(["exact"]);
  assert(exact !== undefined, "there is no exact codec level");
  if (question.deadlineMs === undefined || exact.meetsDeadline) return exact;
  let better = "exact" as KvAccuracy;
  for (const accuracy of allowed.slice(1)) {
    const plan = uniform([accuracy]);
    if (plan?.meetsDeadline) return refined(question, plan, better);
    better = accuracy;
  }
  return soonest(allowed.flatMap((accuracy) => uniform([accuracy]) ?? []));
}

/** All fetched chunks at one level. */
function uniformPlan(question: TransferQuestion, level: CodecLevelFacts): TransferPlan {
  const { chunks, deadlineMs } = question;
  const all = chunks.map(() => level);
  const plan = (computedCount: number) => planned(question, computedCount, all.slice(computedCount));
  if (!question.mayCompute) return plan(0);
  // Computing takes longer with each chunk, fetching the rest less long: the soonest plan is where they meet.
  let low = 0;
  let high = chunks.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (computeMs(chunks, middle) < fetchMs(chunks, all, question.link, middle)) low = middle + 1;
    else high = middle;
  }
  const best = soonest(low === 0 ? [plan(0)] : [plan(low - 1), plan(low)]);
  if (deadlineMs === undefined || !best.meetsDeadline) return best;
  // Fewer computed chunks that still do: fetching takes longer the more of them travel.
  let least = 0;
  let most = best.computedCount;
  while (least < most) {
    const middle = (least + most) >> 1;
    if (plan(middle).meetsDeadline) most = middle;
    else least = middle + 1;
  }
  return plan(least);
}

/** The same with as many chunks from the front at a better accuracy as the deadline allows. */
function refined(question: TransferQuestion, coarse: TransferPlan, accuracy: KvAccuracy): TransferPlan {
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

function planned(question: TransferQuestion, computedCount: number, levels: readonly CodecLevelFacts[]): TransferPlan {
  const { chunks, link, deadlineMs } = question;
  const fetched = chunks.slice(computedCount);
  const fetchingMs = fetched.length === 0 ? 0 : fetchMs(fetched, levels, link);
  const predictedMs = Math.max(computeMs(chunks, computedCount), fetchingMs);
  return { computedCount, levels, predictedMs, meetsDeadline: deadlineMs !== undefined && predictedMs <= deadlineMs };
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
