export {
  type Candidate,
  type ChoiceOptions,
  type ChoiceOutcome,
  choosePlacement,
  type Exclusion,
} from "./choose-placement.ts";
export { type AttachedWorker, type ClusterViewOptions, isOpen, type StreamId } from "./cluster-view.ts";
export { candidateName } from "./describe-placement.ts";
export type { PrefixFetchPlan, PrefixHolder } from "./fetch-plan.ts";
export { canDecode, canPrefill } from "./fit.ts";
export { GOODPUT_DEFAULTS, type GoodputOptions, GoodputPolicy } from "./goodput-policy.ts";
export { assumedRates, type KvRate, type KvRates, LinkBelief } from "./link-belief.ts";
export { type KvModel, type RefusedPair, refusedPairs } from "./pair.ts";
export type { PlacementPolicy, PlacementQuestion, PolicyOutcome, RequestOutcome } from "./placement-policy.ts";
export { PREDICTION_DEFAULTS, type PredictionOptions, type ReckonedLoad, reckonLoad } from "./predict.ts";
export { placementReadiness } from "./readiness.ts";
export type { RequestKey, Reserved } from "./reservations.ts";
export type { PlacementDecision, RefusalCode, RouterEffect, RouterEvent } from "./router-events.ts";
export { type RouterOptions, RouterState, WORKER_QUEUE_DEFAULTS, type WorkerQueueOptions } from "./router-state.ts";
export type { AttachedStore, StoreFacts, StoreLoad } from "./store-facts.ts";
export type { Objectives, PromptHashes, ReportedLoad, RequestShape, WorkerFacts, WorkerRole } from "./worker-facts.ts";
export { decodeBlockCount, prefillBlockCount } from "./worker-facts.ts";
