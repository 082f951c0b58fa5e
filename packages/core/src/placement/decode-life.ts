import type { Instant } from "../time.ts";

/** Time over which ends are counted. Larger: steadier; smaller: follows a change of the answers' lengths sooner. */
const WINDOW_MS = 60_000;
/** Ends that the predicted length counts for. */
const PRIOR_ENDS = 2;

/**
 * How long answers are generated on one worker: the time that they ran, over those that ended, which is the likeliest mean of exponential lives
 * of which some still run. A predicted length only counts for a few ends: where answers are longer than those before them nothing ends,
 * and what is told grows with the time that they run. Cost O(1).
 */
export class DecodeLife {
  #count = 0;
  /** Answers × milliseconds within the window, and their ends. */
  #exposureMs = 0;
  #ends = 0;
  #priorMs = 0;
  #countedTo: Instant;

  constructor(now: Instant) {
    this.#countedTo = now;
  }

  /** Answers that run. */
  get count(): number {
    return this.#count;
  }

  began(predictedMs: number, now: Instant): void {
    this.#advance(now);
    this.#count++;
    this.#priorMs = this.#priorMs === 0 ? predictedMs : this.#priorMs + 0.1 * (predictedMs - this.#priorMs);
  }

  ended(now: Instant): void {
    this.#advance(now);
    this.#count--;
    this.#ends++;
  }

  /** Infinity before the first began. */
  meanMs(now: Instant): number {
    if (this.#priorMs === 0) return Number.POSITIVE_INFINITY;
    const running = this.#count * ((now - this.#countedTo) / 1e6);
    return (this.#exposureMs + running + PRIOR_ENDS * this.#priorMs) / (this.#ends + PRIOR_ENDS);
  }

  #advance(now: Instant): void {
    const ms = (now - this.#countedTo) / 1e6;
    const kept = Math.exp(-ms / WINDOW_MS);
    this.#exposureMs = this.#exposureMs * kept + this.#count * ms;
    this.#ends *= kept;
    this.#countedTo = now;
  }
}
