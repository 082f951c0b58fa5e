export {
  ADMISSION_POLICIES,
  type AdmissionOptions,
  type AdmissionPolicy,
  type BlocksUse,
  StoreAdmission,
} from "./admission.ts";
export { type KeptText, keptKeys } from "./kept-keys.ts";
export { type BlockRun, PullQueue, type PullQueueOptions, runsOf } from "./pull-queue.ts";
export { StoreDirectory } from "./store-directory.ts";
export type { StoredBlock, StoreEffect, StoreEvent, StoreLimits, StoreMedium } from "./store-event.ts";
