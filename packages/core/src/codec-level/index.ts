export { accuracyOf, observedLevel, observedLink, type TrafficFacts } from "./estimates.ts";
export {
  type CodecLevelFacts,
  fetchMs,
  KV_ACCURACIES,
  type KvAccuracy,
  type KvChunkFacts,
  type LinkFacts,
} from "./fetch-time.ts";
export { PLANNED_SHARE, planTransfer, type TransferPlan, type TransferQuestion } from "./plan-transfer.ts";
export {
  type CodecProfileFacts,
  type LevelChoice,
  type LevelQuestion,
  type LevelSpan,
  TransferBook,
} from "./transfer-book.ts";
