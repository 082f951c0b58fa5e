import type { Instant } from "../time.ts";
import type { Candidate } from "./choose-placement.ts";
import type { Objectives } from "./worker-facts.ts";

/** Time without a placement after which a prediction is put to the test. Larger: a wrong one refuses for longer; smaller: more requests are late. */
const TRIAL_AFTER_MS = 2_000;
/** Predictions so many times beyond a target are believed. Larger: more hopeless requests are tried; smaller: predictions that are further off stay. */
const TRIAL_FACTOR = 3;

/**
 * Predictions are corrected by what runs. Where every request is refused because all are predicted to be late, nothing runs, and a prediction that is
 * wrong, say because the machine was busy with something else when it was learnt, would refuse for ever. So a request that is predicted to be
 * late, though not hopelessly, runs all the same when its workers have nothing to do and nothing of its model was placed for a while: it costs
 * nobody anything.
 */
export class Trials {
  /** By model: the last placement, or the first refusal of who was never placed. */
  readonly #since = new Map<string, Instant>();

  placed(model: string, now: Instant): void {
    this.#since.set(model, now);
  }

  /** Whether a request that is predicted to be late should run here. */
  isDue(
    model: string,
    { ttftMs, tbtMs, ttft, sequenceCount }: Candidate,
    targets: Partial<Objectives>,
    waitedMs: number,
    now: Instant,
  ): boolean {
    const since = this.#since.get(model);
    if (since === undefined) this.#since.set(model, now);
    if (since === undefined || (now - since) / 1e6 < TRIAL_AFTER_MS) return false;
    const isIdle = sequenceCount === 0 && ttft.queueMs === 0;
    const { ttftMs: ttftTarget = Number.POSITIVE_INFINITY, tbtMs: tbtTarget = Number.POSITIVE_INFINITY } = targets;
    return isIdle && waitedMs + ttftMs <= TRIAL_FACTOR * ttftTarget && tbtMs <= TRIAL_FACTOR * tbtTarget;
  }
}
