import type { Instant } from "../time.ts";
import type { Candidate, ChoiceOptions, ChoiceOutcome, Exclusion } from "./choose-placement.ts";
import type { AttachedWorker } from "./cluster-view.ts";
import type { RequestKey, Reserved } from "./reservations.ts";
import type { RequestShape } from "./worker-facts.ts";

/** All that a placement may be made from. */
export interface PlacementQuestion {
  readonly workers: Iterable<AttachedWorker>;
  readonly request: RequestShape;
  /** Since its arrival. */
  readonly waitedMs: number;
  readonly reservedOf: (incarnation: string) => Reserved;
  readonly exclusionOf: (worker: AttachedWorker) => Exclusion;
  readonly options: ChoiceOptions;
  readonly now: Instant;
}

/** `late`: there is room, and no placement that meets the request's objectives. */
export type PolicyOutcome =
  | ChoiceOutcome
  | { readonly kind: "late"; readonly message: string; readonly retryAfterMs: number };

/** Where requests run. What was placed and what became of it is told, for those that learn from it. */
export interface PlacementPolicy {
  choose(question: PlacementQuestion): PolicyOutcome;
  placed?(key: RequestKey, candidate: Candidate, request: RequestShape, now: Instant): void;
  firstToken?(key: RequestKey, now: Instant): void;
  /** It ended, or will be placed anew. */
  ended?(key: RequestKey, now: Instant): void;
}
