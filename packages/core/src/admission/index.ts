export type { ModelShares } from "./admission-control.ts";
export { AdmissionQueue, type Backlog, type Turns, type Waiting } from "./admission-queue.ts";
export { CLASS_OFFSET_TOKENS, CLASS_PATIENCE, SERVICE_CLASSES, type ServiceClass } from "./service-class.ts";
export { OUTPUT_TOKEN_PRICE, type SharesSnapshot, TenantShares } from "./tenant-shares.ts";
