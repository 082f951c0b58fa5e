import type { Instant } from "../time.ts";
import { DecodeLife } from "./decode-life.ts";
import type { RequestOutcome } from "./placement-policy.ts";
import type { RequestKey } from "./reservations.ts";

/** What one placement makes of its workers' work, as predicted. */
export interface PlacedWork {
  /** Incarnation that computes the prompt, and the time that takes. */
  readonly prefillOn: string;
  readonly prefillMs: number;
  /** Of it, what comes on top where the steps decode as well: all but the fixed part of each step. */
  readonly besideMs: number;
  /** Incarnation that decodes, and the context that its answer has on average. */
  readonly decodeOn: string;
  readonly contextTokenCount: number;
  /**
   * As predicted from what steps cost, with the correction of that time; undefined when another rule predicted it, whose error is none of the
   * worker's. So is that of a TTFT without a prediction.
   */
  readonly predicted: { readonly ttftMs: number | undefined; readonly tbtMs: number } | undefined;
  readonly tbtTargetMs: number;
  /** Time that its answer takes to generate. */
  readonly answerMs: number;
}

interface Entry extends PlacedWork {
  readonly placedAt: Instant;
  /** Corrections that its predicted TTFT and gap have in them. */
  readonly slowness: number;
  readonly gapSlowness: number;
  isPrefilled: boolean;
}

/** What is left of the work placed on one worker. */
export interface WorkStanding {
  /** Time until a prompt placed now is computed first. */
  readonly queueMs: number;
  /** Share of the worker's time that prompts placed on it take from its decodes, over the last while; below 1 unless it is overloaded. */
  readonly prefillShare: number;
  /** Measured over predicted TTFT. */
  readonly slowness: number;
  /** Answers placed there, and their context. */
  readonly sequenceCount: number;
  readonly contextTokenCount: number;
  /** Of those that decode there; infinity when nobody has a target. */
  readonly strictestTbtMs: number;
  /** Measured over predicted gaps between tokens, beside what is usual in the fleet; at least 1. */
  readonly gapSlowness: number;
  /** Answers that are being generated, of those placed there. */
  readonly decodingCount: number;
  /** How long they take, by how many ended of late. */
  readonly decodeLifeMs: number;
}

const IDLE: WorkStanding = {
  queueMs: 0,
  prefillShare: 0,
  slowness: 1,
  sequenceCount: 0,
  contextTokenCount: 0,
  strictestTbtMs: Number.POSITIVE_INFINITY,
  gapSlowness: 1,
  decodingCount: 0,
  decodeLifeMs: Number.POSITIVE_INFINITY,
};

interface WorkerWork {
  /** Prompts not yet computed, first placed first: request → predicted time. */
  readonly pending: Map<RequestKey, number>;
  pendingMs: number;
  /** Since when the first of them is believed to run. */
  headSince: Instant;
  /** Measured over predicted TTFT. */
  slowness: number;
  /** Prompt work placed here, decayed: milliseconds within the window. */
  recentPrefillMs: number;
  recentAt: Instant;
  /** When work was first placed here. */
  readonly since: Instant;
  sequenceCount: number;
  contextTokenCount: number;
  /** Decodes with a target, by it, to know the strictest. */
  readonly tbtTargets: Map<number, number>;
  /** Measured over predicted gaps between tokens, before any correction; undefined before the first. */
  gapRatio: number | undefined;
  readonly life: DecodeLife;
}

/** Time over which prompt work is averaged to tell what share of a worker it takes. Larger: steadier; smaller: sees bursts. */
const WINDOW_MS = 10_000;
/** Of a worker that is new, so much at least: a single prompt tells no share. */
const WINDOW_MIN_MS = 3_000;
const SLOWNESS_GAIN = 0.15;
const SLOWNESS_MIN = 0.5;
const SLOWNESS_MAX = 20;
const GAP_GAIN = 0.1;
/** Gaps as many times as long as usual are a worker's own. Smaller: what differs by chance moves requests about; larger: stragglers are found later. */
const GAP_ODD_MIN = 2;
/** Tokens of an answer whose mean gap tells of the worker; that of a shorter one tells more of its hand-over. */
const TELLING_TOKENS = 64;
/** TTFTs below tell of messages, not of the device. */
const TTFT_TOLD_MIN_MS = 5;

/**
 * What this router has asked of each worker and what must be left of it by now. A prompt's work is there from placement to the first token; of
 * the one in front, what the time since it came to the front can have done is taken off, but never more than all of it: so the queue shrinks
 * between reports, and a burst never meets the illusion of an idle worker. How much longer first tokens took than predicted, on each worker,
 * corrects what is predicted next: that finds workers that are slow, or say what is not.
 */
export class WorkLedger {
  readonly #entries = new Map<RequestKey, Entry>();
  readonly #workers = new Map<string, WorkerWork>();
  /** Measured over predicted gaps between tokens, over all workers. */
  #usualGapRatio = 1;

  placed(key: RequestKey, work: PlacedWork, now: Instant): void {
    const decode = this.#worker(work.decodeOn, now);
    const gapSlowness = this.#gapSlowness(decode);
    const prefill = this.#worker(work.prefillOn, now);
    const { slowness } = prefill;
    this.#entries.set(key, { ...work, placedAt: now, isPrefilled: false, slowness, gapSlowness });
    if (prefill.pending.size === 0) prefill.headSince = now;
    prefill.pending.set(key, work.prefillMs);
    prefill.pendingMs += work.prefillMs;
    prefill.recentPrefillMs = decayed(prefill, now) + work.besideMs;
    prefill.recentAt = now;
    decode.sequenceCount++;
    decode.contextTokenCount += work.contextTokenCount;
    decode.tbtTargets.set(work.tbtTargetMs, (decode.tbtTargets.get(work.tbtTargetMs) ?? 0) + 1);
  }

  firstToken(key: RequestKey, now: Instant): void {
    const entry = this.#entries.get(key);
    if (entry === undefined || entry.isPrefilled) return;
    const measuredMs = (now - entry.placedAt) / 1e6;
    const worker = this.#workers.get(entry.prefillOn);
    const ttftMs = entry.predicted?.ttftMs ?? 0;
    if (worker !== undefined && ttftMs > TTFT_TOLD_MIN_MS) {
      // Beside a prediction without any correction: many that were predicted before the first of them was measured tell one thing, not many.
      const uncorrected = (entry.slowness * measuredMs) / ttftMs;
      const slowness = worker.slowness * (uncorrected / worker.slowness) ** SLOWNESS_GAIN;
      worker.slowness = Math.max(SLOWNESS_MIN, Math.min(SLOWNESS_MAX, slowness));
    }
    this.#workers.get(entry.decodeOn)?.life.began(entry.answerMs, now);
    this.#endPrefill(key, entry, now);
  }

  /** It ended, or is placed anew. `outcome`: of one that ran to its end. */
  ended(key: RequestKey, now: Instant, outcome?: RequestOutcome): void {
    const entry = this.#entries.get(key);
    if (entry === undefined) return;
    this.#entries.delete(key);
    const decode = this.#workers.get(entry.decodeOn);
    if (entry.isPrefilled) decode?.life.ended(now);
    else this.#endPrefill(key, entry, now);
    if (decode === undefined) return;
    const { tbtMs = 0 } = entry.predicted ?? {};
    if (outcome !== undefined && outcome.tbtMs > 0 && tbtMs > 0) {
      const ratio = (outcome.tbtMs / tbtMs) * entry.gapSlowness;
      this.#learnGap(decode, ratio, GAP_GAIN * Math.min(1, outcome.outputTokenCount / TELLING_TOKENS));
    }
    decode.sequenceCount--;
    decode.contextTokenCount -= entry.contextTokenCount;
    const left = (decode.tbtTargets.get(entry.tbtTargetMs) ?? 1) - 1;
    if (left > 0) decode.tbtTargets.set(entry.tbtTargetMs, left);
    else decode.tbtTargets.delete(entry.tbtTargetMs);
    this.#forgetIfIdle(entry.decodeOn, decode);
  }

  standing(incarnation: string, now: Instant): WorkStanding {
    const worker = this.#workers.get(incarnation);
    if (worker === undefined) return IDLE;
    let strictestTbtMs = Number.POSITIVE_INFINITY;
    for (const target of worker.tbtTargets.keys()) strictestTbtMs = Math.min(strictestTbtMs, target);
    return {
      queueMs: queueMsOf(worker, now),
      prefillShare: decayed(worker, now) / windowMs(worker, now),
      slowness: worker.slowness,
      sequenceCount: worker.sequenceCount,
      contextTokenCount: worker.contextTokenCount,
      strictestTbtMs,
      gapSlowness: this.#gapSlowness(worker),
      decodingCount: worker.life.count,
      decodeLifeMs: worker.life.meanMs(now),
    };
  }

  /**
   * What all workers have in common is the model's error, such as load that came later; what one has beyond it is its own. Only what is worse
   * than usual counts, so that nobody gains by promising much.
   */
  #learnGap(worker: WorkerWork, ratio: number, gain: number): void {
    const bounded = Math.max(1 / SLOWNESS_MAX, Math.min(SLOWNESS_MAX, ratio));
    this.#usualGapRatio *= (bounded / this.#usualGapRatio) ** gain;
    worker.gapRatio = (worker.gapRatio ?? this.#usualGapRatio) * (bounded / (worker.gapRatio ?? bounded)) ** gain;
  }

  #gapSlowness({ gapRatio }: WorkerWork): number {
    const slowness = (gapRatio ?? 0) / this.#usualGapRatio;
    return slowness > GAP_ODD_MIN ? Math.min(SLOWNESS_MAX, slowness) : 1;
  }

  #endPrefill(key: RequestKey, entry: Entry, now: Instant): void {
    entry.isPrefilled = true;
    const worker = this.#workers.get(entry.prefillOn);
    const prefillMs = worker?.pending.get(key);
    if (worker === undefined || prefillMs === undefined) return;
    worker.pending.delete(key);
    worker.pendingMs = worker.pending.size === 0 ? 0 : worker.pendingMs - prefillMs;
    worker.headSince = now;
    this.#forgetIfIdle(entry.prefillOn, worker);
  }

  /** What was learnt of a worker's speed is kept while it is among those seen last. */
  #forgetIfIdle(incarnation: string, worker: WorkerWork): void {
    if (this.#workers.size <= WORKERS_MAX || worker.pending.size > 0 || worker.sequenceCount > 0) return;
    this.#workers.delete(incarnation);
  }

  #worker(incarnation: string, now: Instant): WorkerWork {
    const known = this.#workers.get(incarnation);
    if (known !== undefined) return known;
    const worker: WorkerWork = {
      pending: new Map(),
      pendingMs: 0,
      headSince: now,
      slowness: 1,
      recentPrefillMs: 0,
      recentAt: now,
      since: now,
      sequenceCount: 0,
      contextTokenCount: 0,
      tbtTargets: new Map(),
      gapRatio: undefined,
      life: new DecodeLife(now),
    };
    this.#workers.set(incarnation, worker);
    return worker;
  }
}

/** Share of a worker's time that one more prompt adds. */
export function shareOf(besideMs: number): number {
  return besideMs / WINDOW_MS;
}

/** The part of the window since work was first placed there, weighted as the work in it is. */
function windowMs({ since }: WorkerWork, now: Instant): number {
  const sinceMs = Math.max(WINDOW_MIN_MS, (now - since) / 1e6);
  return WINDOW_MS * (1 - Math.exp(-sinceMs / WINDOW_MS));
}

function queueMsOf({ pending, pendingMs, headSince }: WorkerWork, now: Instant): number {
  if (pending.size === 0) return 0;
  const [headMs = 0] = pending.values();
  return Math.max(0, pendingMs - Math.min((now - headSince) / 1e6, headMs));
}

/** Incarnations of workers that are remembered beyond their requests. */
const WORKERS_MAX = 4_096;

function decayed({ recentPrefillMs, recentAt }: WorkerWork, now: Instant): number {
  return recentPrefillMs * Math.exp(-(now - recentAt) / 1e6 / WINDOW_MS);
}
