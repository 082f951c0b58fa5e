export {
  OUTPUT_LENGTH_DEFAULTS,
  type OutputLengthOptions,
  OutputLengthPredictor,
  type PredictedLength,
} from "./output-length.ts";
export { RecentTimes } from "./recent-times.ts";
export {
  decodeStepMs,
  prefillMs,
  prefillStepCount,
  type StepCost,
  StepCostModel,
  type StepWork,
  stepMs,
} from "./step-cost.ts";
