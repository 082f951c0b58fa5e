import { RecentTimes, type StepCost, StepCostModel, type StepPlan, type StepWork } from "@kvasir/core";

/** Weight of the newest step in the recent speeds. Larger: follows load changes sooner, and noise too. */
const NEWEST_WEIGHT = 0.2;

/** Steps of fewer prompt tokens tell nothing of what a token takes. */
const TELLING_TOKENS = 16;

/** One answered step. `idleNanos` is undefined when the device had nothing to do before it. */
export interface StepTimes {
  readonly wallNanos: number;
  readonly deviceNanos: number;
  readonly idleNanos: number | undefined;
}

/** Believed before any step ran: a small model on a CPU. Enough steps overrule it whatever the device. */
const UNKNOWN_COST: StepCost = { fixedMs: 20, promptTokenMs: 1, attentionMs: 1e-5, decodeMs: 1, contextTokenMs: 1e-3 };

/** Recent speeds of the engine, exponentially weighted. Hints for placement and lease lengths; 0 before the first measurement. */
export class StepMeter {
  #prefillTokensPerSecond = 0;
  #decodeStepMs = 0;
  readonly #cost = new StepCostModel(UNKNOWN_COST);
  readonly #promptTokenMs = new RecentTimes();
  #hasComputedPrompts = false;

  observe(plan: StepPlan, deviceNanos: number): void {
    if (deviceNanos <= 0) return;
    this.#cost.observe(workOf(plan), deviceNanos / 1e6);
    if (plan.promptTokenCount > 0) {
      this.#hasComputedPrompts = true;
      this.#prefillTokensPerSecond = blend(this.#prefillTokensPerSecond, plan.promptTokenCount / (deviceNanos / 1e9));
      if (plan.promptTokenCount >= TELLING_TOKENS) this.#promptTokenMs.add(deviceNanos / 1e6 / plan.promptTokenCount);
    } else if (plan.decodeTokenCount > 0) {
      this.#decodeStepMs = blend(this.#decodeStepMs, deviceNanos / 1e6);
    }
  }

  /** Prompt tokens per second of device time, over steps that had any. */
  get prefillTokensPerSecond(): number {
    return this.#prefillTokensPerSecond;
  }

  /** What a prompt token has to be feared to take, in steps as there are now; undefined before any. */
  get fearedPromptTokenMs(): number | undefined {
    return this.#promptTokenMs.feared;
  }

  /** Device time of steps that only decode. */
  get decodeStepMs(): number {
    return this.#decodeStepMs;
  }

  /** What steps cost; undefined before enough of them ran. Prompts cost 0 before any was computed: whoever asks knows that nothing is known of them. */
  stepCost(): StepCost | undefined {
    const cost = this.#cost.cost();
    if (cost === undefined || this.#hasComputedPrompts) return cost;
    return { ...cost, promptStepMs: 0, promptTokenMs: 0, attentionMs: 0 };
  }

  /** How long computing `tokenCount` prompt tokens may take; 0 while unknown. */
  prefillMs(tokenCount: number): number {
    return this.#prefillTokensPerSecond === 0 ? 0 : (tokenCount / this.#prefillTokensPerSecond) * 1_000;
  }
}

function blend(old: number, newest: number): number {
  return old === 0 ? newest : old + NEWEST_WEIGHT * (newest - old);
}

function workOf(plan: StepPlan): StepWork {
  let attentionArea = 0;
  let contextTokenCount = 0;
  // Decodes come first.
  for (const [index, { startPosition, tokenCount }] of plan.slices.entries()) {
    if (index < plan.decodeTokenCount) contextTokenCount += startPosition;
    else attentionArea += (startPosition + tokenCount) ** 2 - startPosition ** 2;
  }
  const { promptTokenCount, decodeTokenCount: decodeCount } = plan;
  return { promptTokenCount, attentionArea, decodeCount, contextTokenCount };
}
