export {
  type CodecLevelFacts,
  fetchMs,
  KV_ACCURACIES,
  type KvAccuracy,
  type KvChunkFacts,
  type LinkFacts,
} from "./fetch-time.ts";
export { planTransfer, type TransferPlan, type TransferQuestion } from "./plan-transfer.ts";
