export {
  type Candidate,
  type ChoiceOptions,
  type ChoiceOutcome,
  choosePlacement,
  type Exclusion,
  type PlacementPolicy,
} from "./choose-placement.ts";
export { type AttachedWorker, type ClusterViewOptions, isOpen, type StreamId } from "./cluster-view.ts";
export { candidateName } from "./describe-placement.ts";
export { PREDICTION_DEFAULTS, type PredictionOptions } from "./predict.ts";
export { placementReadiness } from "./readiness.ts";
export type { RequestKey, Reserved } from "./reservations.ts";
export type { PlacementDecision, RouterEffect, RouterEvent } from "./router-events.ts";
export { type RouterOptions, RouterState } from "./router-state.ts";
export type { Objectives, PromptHashes, ReportedLoad, RequestShape, WorkerFacts, WorkerRole } from "./worker-facts.ts";
