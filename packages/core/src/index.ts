export * from "./admission/index.ts";
export * from "./assert.ts";
export * from "./block/block-pool.ts";
export * from "./codec-level/index.ts";
export * from "./cost/index.ts";
export * from "./eviction/index.ts";
export * from "./handover/decode-handover.ts";
export * from "./handover/prefill-handover.ts";
export * from "./handover/tombstones.ts";
export * from "./identity/identity.ts";
export * from "./kvasir-error.ts";
export * from "./lease/lease-table.ts";
export * from "./lease/loan-table.ts";
export * from "./one-line.ts";
export * from "./placement/index.ts";
export * from "./prefix/block-hash.ts";
export { CacheJournal } from "./prefix/cache-journal.ts";
export * from "./prefix-fetch/index.ts";
export * from "./prefix-index/index.ts";
export * from "./rendezvous/rendezvous.ts";
export * from "./resume/attempts.ts";
export * from "./resume/request-progress.ts";
export * from "./scheduler/capacity.ts";
export * from "./scheduler/events.ts";
export type { SchedulerLoad } from "./scheduler/load.ts";
export type { Sequence, SequencePhase } from "./scheduler/sequence.ts";
export {
  STEPS_IN_FLIGHT_MAX,
  StepScheduler,
  type StepSchedulerOptions,
} from "./scheduler/step-scheduler.ts";
export * from "./store/index.ts";
export * from "./time.ts";
