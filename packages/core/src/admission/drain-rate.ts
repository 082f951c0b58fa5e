import { type Instant, msFromNanos, nanosBetween } from "../time.ts";

/** Time over which the rate is averaged. Larger: steadier; smaller: follows a change of load sooner. */
const WINDOW_MS = 10_000;
/** Time of waiting that must have been seen before a rate is told. */
const SEEN_MIN_MS = 200;

/** How fast the queue is served, measured while somebody waits: tokens of cost a millisecond, over the last while. */
export class DrainRate {
  #tokens = 0;
  #ms = 0;
  /** Since when somebody waits, and up to when time was counted; undefined while nobody does. */
  #since: Instant | undefined;
  #countedTo: Instant | undefined;

  /** Somebody waits from now on, or nobody does. */
  setWaiting(isWaiting: boolean, now: Instant): void {
    if (isWaiting) {
      this.#since ??= now;
      this.#countedTo ??= now;
      return;
    }
    this.#count(now);
    this.#since = undefined;
    this.#countedTo = undefined;
  }

  /** A request of this cost left the queue for a worker. Whoever is placed when it comes, with nobody waiting, says nothing of the pace. */
  served(tokens: number, now: Instant): void {
    if (this.#since === undefined || this.#since === now) return;
    this.#count(now);
    this.#tokens += tokens;
  }

  /** Time that such an amount takes; undefined while nothing is known. */
  msFor(tokens: number, now: Instant): number | undefined {
    if (tokens <= 0) return 0;
    const open = this.#countedTo === undefined ? 0 : msFromNanos(nanosBetween(this.#countedTo, now));
    const ms = this.#ms + open;
    return this.#tokens <= 0 || ms < SEEN_MIN_MS ? undefined : (tokens * ms) / this.#tokens;
  }

  #count(now: Instant): void {
    if (this.#countedTo === undefined) return;
    const ms = msFromNanos(nanosBetween(this.#countedTo, now));
    const kept = Math.exp(-ms / WINDOW_MS);
    this.#tokens *= kept;
    this.#ms = this.#ms * kept + ms;
    this.#countedTo = now;
  }
}
