import { type Sequence, uncomputedCount } from "./sequence.ts";

export interface SchedulerLoad {
  /** Blocks neither held nor reserved. */
  readonly availableBlockCount: number;
  readonly runningCount: number;
  /** Not yet admitted, or admitted and without its first step or its KV. */
  readonly waitingCount: number;
  /** Prompt tokens of sequences to compute here that are neither planned nor fetched. */
  readonly queuedPromptTokenCount: number;
  /** Context over the sequences that decode. */
  readonly contextTokenCount: number;
}

export function loadOf(sequences: Iterable<Sequence>, availableBlockCount: number): SchedulerLoad {
  let queuedPromptTokenCount = 0;
  let contextTokenCount = 0;
  let waitingCount = 0;
  let runningCount = 0;
  for (const sequence of sequences) {
    const { phase, spec, samplePlannedCount, started } = sequence;
    if (phase === "ended" || phase === "pinned") continue;
    if (spec.kind !== "decode" || phase === "prompting") queuedPromptTokenCount += uncomputedCount(sequence);
    if (phase === "decoding") contextTokenCount += spec.promptTokenIds.length + samplePlannedCount;
    if (phase === "decoding" || (phase === "prompting" && started)) runningCount++;
    else waitingCount++;
  }
  return { availableBlockCount, runningCount, waitingCount, queuedPromptTokenCount, contextTokenCount };
}
