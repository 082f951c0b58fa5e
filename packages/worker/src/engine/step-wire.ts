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
  /** The prompt, where sampling depends on it; else empty. */
  readonly promptTokenIds: readonly number[];
}

/** Whether the sidecar has to know the prompt to sample, also where it does not compute it. */
export function samplingNeedsPrompt({ repetitionPenalty, badWords, promptLogprobs }: SamplingParams): boolean {
  const penalizes = repetitionPenalty !== 0 && repetitionPenalty !== 1;
  return penalizes || badWords.length > 0 || promptLogprobs !== undefined;
}

/** A plan as the sidecar reads it. Ids become `bigint` here and nowhere else. */
export function requestFromPlan(
  plan: StepPlan,
  factsOf: (sequenceId: number) => StartFacts,
): MessageInitShape<typeof ExecuteRequestSchema> {
  return {
    stepId: BigInt(plan.stepId),
    placements: plan.copies.map(({ sourceBlockId, targetBlockId, tokenCount }) => ({
      sourceBlockIds: [sourceBlockId],
      targetBlockIds: [targetBlockId],
      tokenCount,
    })),
    starts: plan.starts.map((start) => {
      const { sampling, traceparent, promptTokenIds } = factsOf(start.sequenceId);
      return {
        sequenceId: BigInt(start.sequenceId),
        promptTokenCount: start.promptTokenCount,
        blockIds: start.blockIds as BlockId[],
        promptTokenIds: promptTokenIds as number[],
        ...{ sampling, traceparent },
      };
    }),
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
