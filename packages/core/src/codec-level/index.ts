export { accuracyOf, observedLevel } from "./estimates.ts";
export {
  type CodecLevelFacts,
  fetchMs,
  isWithin,
  KV_ACCURACIES,
  type KvAccuracy,
  type KvChunkFacts,
  type LinkFacts,
} from "./fetch-time.ts";
export { type LinkRates, linkRates, type MeasuredLink } from "./link-rates.ts";
export { type LinkSpeed, observedLink, type TrafficFacts } from "./link-speed.ts";
export { planTransfer, type TransferPlan, type TransferQuestion } from "./plan-transfer.ts";
export {
  type CodecProfileFacts,
  type ComputeFacts,
  type KnownLevels,
  type LevelChoice,
  type LevelQuestion,
  type LevelSource,
  type LevelSpan,
  TransferBook,
  type UnderWayFacts,
} from "./transfer-book.ts";
