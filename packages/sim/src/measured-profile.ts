import { type StepCost, type StepWork, stepMs } from "@kvasir/core";
import type { DeviceProfile } from "./device-profile.ts";

/** What a live cluster's workers said of themselves, as `kvasir profile steps` keeps it. */
export interface MeasuredProfile {
  readonly name: string;
  /** Of steps that compute prompts alone, fitted on workers that do so. */
  readonly prefill: StepCost;
  /** Of steps that decode. */
  readonly decode: StepCost;
  readonly blockSize: number;
  readonly blockCount: number;
  readonly kvBytesPerToken: number;
  readonly contextLength: number;
  /**
   * A message between two processes: what a lone request's first token takes beside computing its prompt, over the messages that it waits for
   * (`FIRST_TOKEN_MESSAGES`).
   */
  readonly messageMs: number;
  /** Between a step's end and the next one's beginning. */
  readonly stepOverheadMs: number;
}

/** Messages, one after another, before a lone request's first token: where one worker does both phases, and where the prompt is handed over. */
export const FIRST_TOKEN_MESSAGES = { aggregated: 3, split: 5 } as const;

/** The device of a measured profile. A step that does both costs what prompts cost and, on top, what its decodes add. */
export function deviceOf(measured: MeasuredProfile): DeviceProfile {
  const { name, prefill, decode, blockSize, blockCount, kvBytesPerToken, contextLength } = measured;
  return {
    name,
    stepMs: (work: StepWork) => {
      if (work.promptTokenCount === 0) return stepMs(decode, work);
      const beside = work.decodeCount === 0 ? 0 : stepMs({ ...decode, fixedMs: 0 }, { ...work, ...NO_PROMPT });
      return stepMs(prefill, { ...work, decodeCount: 0, contextTokenCount: 0 }) + beside;
    },
    believed: { ...prefill, decodeMs: decode.decodeMs, contextTokenMs: decode.contextTokenMs },
    kvTokenCapacity: blockCount * blockSize,
    kvBytesPerToken,
    contextLength,
  };
}

const NO_PROMPT = { promptTokenCount: 0, attentionArea: 0 };
const COST_FIELDS = ["fixedMs", "promptTokenMs", "attentionMs", "decodeMs", "contextTokenMs"] as const;
const COUNT_FIELDS = ["blockSize", "blockCount", "kvBytesPerToken", "contextLength"] as const;
const OVERHEAD_FIELDS = ["messageMs", "stepOverheadMs"] as const;

/** Reads a profile's JSON; throws what is wrong with it, with the value. */
export function measuredProfileFromJson(text: string): MeasuredProfile {
  const value = JSON.parse(text) as Record<string, unknown>;
  if (typeof value !== "object" || value === null || typeof value.name !== "string") {
    throw new Error("the profile has no name; make one with kvasir profile steps");
  }
  for (const field of COUNT_FIELDS) check(field, value[field], 1);
  for (const field of OVERHEAD_FIELDS) check(field, value[field], 0);
  for (const part of ["prefill", "decode"] as const) {
    const cost = (value[part] ?? {}) as Record<string, unknown>;
    for (const field of COST_FIELDS) check(`${part}.${field}`, cost[field], 0);
  }
  return value as unknown as MeasuredProfile;
}

function check(field: string, value: unknown, least: number): void {
  if (typeof value !== "number" || !Number.isFinite(value) || value < least) {
    throw new Error(`${field} of the profile is ${JSON.stringify(value)}; it must be a number of at least ${least}`);
  }
}
