export type { BlockFacts, EvictionPolicy } from "./eviction-policy.ts";
export { LruPolicy } from "./lru-policy.ts";
export { S3FifoPolicy } from "./s3-fifo-policy.ts";
export { ScoreQueue } from "./score-queue.ts";
export { SCORED_POLICY_DEFAULTS, ScoredPolicy, type ScoredPolicyOptions } from "./scored-policy.ts";
export { SlotList } from "./slot-list.ts";
export { UseSketch } from "./use-sketch.ts";
