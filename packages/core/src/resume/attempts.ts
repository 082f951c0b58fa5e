import { type ErrorFacts, type ErrorReason, isRetryable } from "../kvasir-error.ts";
import { addNanos, type Instant, type Nanos } from "../time.ts";

export interface AttemptOptions {
  /** Attempts in a row that may fail without a new token. Larger: rides out more losses; smaller: hopeless requests end sooner. */
  readonly fruitlessMax: number;
  /** Longest time from a loss to the next placement. Larger: rides out longer restarts; smaller: clients learn sooner. */
  readonly placeWithin: Nanos;
}

/** One attempt at a request: where it ran, what it brought, how it failed. */
export interface FailedAttempt {
  readonly decodeWorkerId: string;
  readonly newTokenCount: number;
  readonly error: Pick<ErrorFacts, "reason" | "workerId">;
}

/** Every way to go on after a failure. */
export type AttemptDecision =
  /** Ask for another placement until `placeBy`, and not on the worker that failed. */
  | { readonly kind: "place_again"; readonly failedWorkerId: string; readonly placeBy: Instant }
  /** The failure is the client's to know. */
  | { readonly kind: "give_up" };

/**
 * What the owner of a request does when an attempt at it has failed. A request goes on as long as it moves: what is bounded is attempts in a
 * row that bring no token, and the time without a placement; max_tokens and the request's own deadline bound the rest.
 */
export class Attempts {
  readonly #options: AttemptOptions;
  readonly #failedWorkerIds = new Set<string>();
  #fruitlessCount = 0;
  #count = 0;

  constructor(options: AttemptOptions) {
    this.#options = options;
  }

  /** Attempts that failed. */
  get failedCount(): number {
    return this.#count;
  }

  /** Workers that failed this request, in the order of their first failure. */
  get failedWorkerIds(): readonly string[] {
    return [...this.#failedWorkerIds];
  }

  failed({ decodeWorkerId, newTokenCount, error }: FailedAttempt, now: Instant): AttemptDecision {
    this.#count++;
    this.#fruitlessCount = newTokenCount > 0 ? 1 : this.#fruitlessCount + 1;
    if (!isWorthAnother(error.reason) || this.#fruitlessCount >= this.#options.fruitlessMax) return { kind: "give_up" };
    const failedWorkerId = error.workerId || decodeWorkerId;
    this.#failedWorkerIds.add(failedWorkerId);
    return { kind: "place_again", failedWorkerId, placeBy: addNanos(now, this.#options.placeWithin) };
  }
}

/** A worker that is too slow may be replaced like one that is gone; the request's own deadline is its owner's to know. */
function isWorthAnother(reason: ErrorReason): boolean {
  return isRetryable(reason) || reason === "deadline_exceeded";
}
