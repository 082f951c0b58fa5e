import type { PredictedLength } from "../cost/output-length.ts";
import type { Instant } from "../time.ts";
import type { Candidate, ChoiceOptions, ChoiceOutcome, Exclusion } from "./choose-placement.ts";
import type { AttachedWorker } from "./cluster-view.ts";
import type { RequestKey, Reserved } from "./reservations.ts";
import type { RequestShape } from "./worker-facts.ts";

/** What became of a request, as its gateway saw it. */
export interface RequestOutcome {
  /** Of all its answers. */
  readonly outputTokenCount: number;
  /** Mean gap between tokens; 0 where there was none. */
  readonly tbtMs: number;
}

/** All that a placement may be made from. */
export interface PlacementQuestion {
  readonly workers: Iterable<AttachedWorker>;
  readonly request: RequestShape;
  /** Since its arrival, and what it is expected to wait still. */
  readonly waitedMs: number;
  /** How long its answer will be; a hint. */
  readonly answer: PredictedLength;
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
  /** It ended, or will be placed anew. `outcome`: of one that ran to its end. */
  ended?(key: RequestKey, now: Instant, outcome?: RequestOutcome): void;
}
