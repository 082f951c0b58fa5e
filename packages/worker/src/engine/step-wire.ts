import type { MessageInitShape } from "@bufbuild/protobuf";
import type { BlockId, SliceOutcome, SliceResult, StepPlan } from "@kvasir/core";
import {
  type ExecuteRequestSchema,
  type ExecuteResponse,
  type SamplingParams,
  SliceOutcome as WireOutcome,
  type SliceResult as WireResult,
} from "@kvasir/proto";

/** What a start needs beyond the plan. */
export interface StartFacts {
  readonly sampling: SamplingParams;
  readonly traceparent: string;
}

/** A plan as the sidecar reads it. Ids become `bigint` here and nowhere else. */
export function requestFromPlan(
  plan: StepPlan,
  factsOf: (sequenceId: number) => StartFacts,
): MessageInitShape<typeof ExecuteRequestSchema> {
  return {
    stepId: BigInt(plan.stepId),
    starts: plan.starts.map((start) => ({
      sequenceId: BigInt(start.sequenceId),
      promptTokenCount: start.promptTokenCount,
      blockIds: start.blockIds as BlockId[],
      ...factsOf(start.sequenceId),
    })),
    slices: plan.slices.map((slice) => ({
      sequenceId: BigInt(slice.sequenceId),
      startPosition: slice.startPosition,
      tokenCount: slice.tokenCount,
      tokenIds: slice.tokenIds as number[],
      appendedBlockIds: slice.appendedBlockIds as BlockId[],
      sample: slice.sample,
    })),
    droppedSequenceIds: plan.droppedSequenceIds.map(BigInt),
  };
}

export function resultsFromResponse(response: ExecuteResponse): readonly SliceResult[] {
  return response.results.map(resultFromWire);
}

function resultFromWire(result: WireResult): SliceResult {
  return { sequenceId: Number(result.sequenceId), outcome: OUTCOMES[result.outcome] ?? "skipped", token: result.token };
}

const OUTCOMES: Readonly<Record<number, SliceOutcome>> = {
  [WireOutcome.COMPUTED]: "computed",
  [WireOutcome.SAMPLED]: "sampled",
  [WireOutcome.STOPPED]: "stopped",
  [WireOutcome.SKIPPED]: "skipped",
};
