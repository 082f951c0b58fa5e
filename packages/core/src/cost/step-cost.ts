import { type LeastSquaresOptions, RecursiveLeastSquares } from "./recursive-least-squares.ts";

/** What one step computes, as far as its time depends on it. */
export interface StepWork {
  /** Prompt tokens computed. */
  readonly promptTokenCount: number;
  /** Σ over the prompts of (L² − p²): L tokens of context after the step, p before it. */
  readonly attentionArea: number;
  /** Sequences that get one more token. */
  readonly decodeCount: number;
  /** Σ of their contexts. */
  readonly contextTokenCount: number;
}

/** Milliseconds for each unit of a step's work; `fixedMs` for any step. */
export interface StepCost {
  readonly fixedMs: number;
  /** Of any step that computes prompt tokens, on top. Default 0. */
  readonly promptStepMs?: number;
  readonly promptTokenMs: number;
  readonly attentionMs: number;
  readonly decodeMs: number;
  readonly contextTokenMs: number;
}

export function stepMs(cost: StepCost, work: StepWork): number {
  return (
    cost.fixedMs +
    (work.promptTokenCount > 0 ? (cost.promptStepMs ?? 0) : 0) +
    cost.promptTokenMs * work.promptTokenCount +
    cost.attentionMs * work.attentionArea +
    cost.decodeMs * work.decodeCount +
    cost.contextTokenMs * work.contextTokenCount
  );
}

/**
 * Time to compute a prompt of `tokenCount` tokens of which the KV of the first `cachedTokenCount` is there, alone, in steps of `tokenBudget`
 * tokens: `c0 + c1·new + c2·(L² − p²)`, with c0, both fixed parts, for each step.
 */
export function prefillMs(cost: StepCost, tokenCount: number, cachedTokenCount: number, tokenBudget: number): number {
  const newTokenCount = Math.max(1, tokenCount - cachedTokenCount);
  const area = tokenCount ** 2 - (tokenCount - newTokenCount) ** 2;
  const steps = prefillStepCount(tokenCount, cachedTokenCount, tokenBudget);
  return (
    steps * (cost.fixedMs + (cost.promptStepMs ?? 0)) + cost.promptTokenMs * newTokenCount + cost.attentionMs * area
  );
}

/** Steps that such a prompt takes. */
export function prefillStepCount(tokenCount: number, cachedTokenCount: number, tokenBudget: number): number {
  return Math.ceil(Math.max(1, tokenCount - cachedTokenCount) / tokenBudget);
}

/** A step that only decodes: `d0 + d1·batch + d2·Σcontext`. */
export function decodeStepMs(cost: StepCost, decodeCount: number, contextTokenCount: number): number {
  return cost.fixedMs + cost.decodeMs * decodeCount + cost.contextTokenMs * contextTokenCount;
}

/** Samples before a fitted cost is better than what was believed before. */
const SAMPLES_MIN = 16;

/** Sizes at which each term is about as large as the others, on anything from a CPU to an H100. */
const SCALES = [1, 1, 256, 512 * 512, 16, 16 * 1_024];

export const STEP_COST_FIT: Omit<LeastSquaresOptions, "prior" | "scales"> = {
  priorDoubt: 3,
  forgetting: 0.995,
  residualBound: 3,
};

/**
 * What steps cost on one worker, learnt from its step results. The believed cost at the beginning comes from a profile or from another worker
 * of the same kind. Coefficients are never negative: one that would be stands for what the others explain.
 */
export class StepCostModel {
  readonly #fit: RecursiveLeastSquares;

  constructor(prior: StepCost, options: Omit<LeastSquaresOptions, "prior" | "scales"> = STEP_COST_FIT) {
    const { fixedMs, promptStepMs = 0, promptTokenMs, attentionMs, decodeMs, contextTokenMs } = prior;
    const coefficients = [fixedMs, promptStepMs, promptTokenMs, attentionMs, decodeMs, contextTokenMs];
    this.#fit = new RecursiveLeastSquares({ ...options, scales: SCALES, prior: coefficients });
  }

  /** Learns from a step. One that computes nothing, such as one that only hands blocks back, costs nothing either and tells nothing. */
  observe(work: StepWork, measuredMs: number): void {
    if (work.promptTokenCount === 0 && work.decodeCount === 0) return;
    this.#fit.observe(features(work), measuredMs);
  }

  /** Undefined until enough steps were seen. */
  cost(): StepCost | undefined {
    if (this.#fit.sampleCount < SAMPLES_MIN) return undefined;
    const [fixedMs = 0, promptStepMs = 0, promptTokenMs = 0, attentionMs = 0, decodeMs = 0, contextTokenMs = 0] =
      this.#fit.nonNegativeCoefficients();
    return { fixedMs, promptStepMs, promptTokenMs, attentionMs, decodeMs, contextTokenMs };
  }

  /** Usual relative error of a predicted step. */
  get deviation(): number {
    return this.#fit.deviation;
  }
}

function features(work: StepWork): readonly number[] {
  return [
    1,
    work.promptTokenCount > 0 ? 1 : 0,
    work.promptTokenCount,
    work.attentionArea,
    work.decodeCount,
    work.contextTokenCount,
  ];
}
