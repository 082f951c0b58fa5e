import type { StepPlan } from "@kvasir/core";

/** Weight of the newest step in the recent speeds. Larger: follows load changes sooner, and noise too. */
const NEWEST_WEIGHT = 0.2;

/** One answered step. `idleNanos` is undefined when the device had nothing to do before it. */
export interface StepTimes {
  readonly wallNanos: number;
  readonly deviceNanos: number;
  readonly idleNanos: number | undefined;
}

/** Recent speeds of the engine, exponentially weighted. Hints for placement and lease lengths; 0 before the first measurement. */
export class StepMeter {
  #prefillTokensPerSecond = 0;
  #decodeStepMs = 0;

  observe(plan: StepPlan, deviceNanos: number): void {
    if (deviceNanos <= 0) return;
    if (plan.promptTokenCount > 0) {
      this.#prefillTokensPerSecond = blend(this.#prefillTokensPerSecond, plan.promptTokenCount / (deviceNanos / 1e9));
    } else if (plan.decodeTokenCount > 0) {
      this.#decodeStepMs = blend(this.#decodeStepMs, deviceNanos / 1e6);
    }
  }

  /** Prompt tokens per second of device time, over steps that had any. */
  get prefillTokensPerSecond(): number {
    return this.#prefillTokensPerSecond;
  }

  /** Device time of steps that only decode. */
  get decodeStepMs(): number {
    return this.#decodeStepMs;
  }

  /** How long computing `tokenCount` prompt tokens may take; 0 while unknown. */
  prefillMs(tokenCount: number): number {
    return this.#prefillTokensPerSecond === 0 ? 0 : (tokenCount / this.#prefillTokensPerSecond) * 1_000;
  }
}

function blend(old: number, newest: number): number {
  return old === 0 ? newest : old + NEWEST_WEIGHT * (newest - old);
}
