import type { StepCost, StepPlan, StepWork } from "@kvasir/core";

export interface DevicePrice {
  readonly dollarsPerHour: number;
  readonly watts: number;
}

/** A model on a device, as far as times depend on it. */
export interface DeviceProfile {
  readonly name: string;
  /** What a step takes, in milliseconds. */
  readonly stepMs: (work: StepWork) => number;
  /** Devices that one worker spans (tensor parallelism). Default 1. */
  readonly deviceCount?: number;
  /** What a device costs in an hour and takes when busy, to compare clusters of unlike ones. */
  readonly price?: DevicePrice;
  /** Pipeline stages: so many steps run at once, each in one of them. Default 1, at most 2, as so many steps are in flight. */
  readonly stageCount?: 1 | 2;
  /** A linear cost close to it: what a worker would be believed to cost before it ran anything. */
  readonly believed: StepCost;
  /** Tokens that the KV pool holds. */
  readonly kvTokenCapacity: number;
  readonly kvBytesPerToken: number;
  readonly contextLength: number;
}

/** DistServe's simulator's coefficients, in milliseconds: prefill `a + b·Σlen + c·Σlen²`, decode `a + b·Σ(context + 1) + c·batch`. */
interface DistServeCoefficients {
  readonly prefill: readonly [number, number, number];
  readonly decodeSmall: readonly [number, number, number];
  readonly decodeLarge: readonly [number, number, number];
}

/** Batch above which the second decode coefficients hold. */
const LARGE_BATCH = 95;

/**
 * A step of the published form. A step that does both reads the weights once: the larger constant counts, and the variable parts add up
 * (Sarathi-Serve, §3: decodes ride along with a prompt's chunk).
 */
function distServe(coefficients: DistServeCoefficients): (work: StepWork) => number {
  const { prefill, decodeSmall, decodeLarge } = coefficients;
  return ({ promptTokenCount, attentionArea, decodeCount, contextTokenCount }) => {
    const decode = decodeCount > LARGE_BATCH ? decodeLarge : decodeSmall;
    const prefillPart = promptTokenCount > 0 ? prefill[1] * promptTokenCount + prefill[2] * attentionArea : 0;
    const decodePart = decodeCount > 0 ? decode[1] * (contextTokenCount + decodeCount) + decode[2] * decodeCount : 0;
    const fixed = Math.max(promptTokenCount > 0 ? prefill[0] : 0, decodeCount > 0 ? decode[0] : 0);
    return fixed + prefillPart + decodePart;
  };
}

/** Any step of the linear form that the cost model fits. */
function linear(cost: StepCost): (work: StepWork) => number {
  return (work) =>
    cost.fixedMs +
    (work.promptTokenCount > 0 ? (cost.promptStepMs ?? 0) : 0) +
    cost.promptTokenMs * work.promptTokenCount +
    cost.attentionMs * work.attentionArea +
    cost.decodeMs * work.decodeCount +
    cost.contextTokenMs * work.contextTokenCount;
}

/** One 8B model with 8 KV heads in bf16 on an H100: 989 TFLOP/s at 55 %, 3.35 TB/s at 75 %; weights 16 GB, KV 128 KiB a token. */
const H100_8B: StepCost = {
  fixedMs: 6.5,
  promptTokenMs: 0.0295,
  attentionMs: 4.8e-7,
  decodeMs: 0.03,
  contextTokenMs: 5.2e-5,
};

/** SmolLM2-135M on the CPU engine of this repository, two cores (docs/results/step-overhead.md and engine.md). */
const CPU_SMOLLM2: StepCost = {
  fixedMs: 12.6,
  promptTokenMs: 2.1,
  attentionMs: 4e-4,
  decodeMs: 1.75,
  contextTokenMs: 1.2e-3,
};

/** Thermal design power of the SXM modules. The prices are assumptions, not quotes: give your own to compare. */
const A100_PRICE: DevicePrice = { dollarsPerHour: 2.2, watts: 400 };
const H100_PRICE: DevicePrice = { dollarsPerHour: 4.75, watts: 700 };
/** H100 beside A100, SXM: dense bf16 arithmetic 989 to 312 TFLOP/s, memory 3.35 to 2.04 TB/s. */
const H100_ARITHMETIC = 312 / 989;
const H100_MEMORY = 2.04 / 3.35;

/** OPT-13B by degree of tensor parallelism, with the tokens that its KV pool holds. */
const OPT_13B: readonly (DistServeCoefficients & { readonly degree: number; readonly kvTokenCapacity: number })[] = [
  {
    degree: 1,
    kvTokenCapacity: 66_144,
    prefill: [18.1, 0.1019, 7.12e-6],
    decodeSmall: [19.93, 6.27e-4, 0.0385],
    decodeLarge: [7.17, 5.8e-4, 0.1583],
  },
  {
    degree: 2,
    kvTokenCapacity: 163_008,
    prefill: [14.74, 0.0686, 2.45e-6],
    decodeSmall: [13.29, 3.41e-4, 0.063],
    decodeLarge: [10.64, 3.12e-4, 0.0856],
  },
  {
    degree: 4,
    kvTokenCapacity: 356_736,
    prefill: [12.06, 0.0381, 5.2e-7],
    decodeSmall: [10.26, 1.88e-4, 0.0327],
    decodeLarge: [10.48, 1.71e-4, 0.0457],
  },
];

function opt13b(coefficients: (typeof OPT_13B)[number]): DeviceProfile {
  const { degree, kvTokenCapacity, prefill, decodeSmall } = coefficients;
  const [fixedMs, promptTokenMs, attentionMs] = prefill;
  return {
    name: `OPT-13B on ${degree === 1 ? "an A100" : `${degree} A100s`} (DistServe's published coefficients)`,
    deviceCount: degree,
    stepMs: distServe(coefficients),
    believed: { fixedMs, promptTokenMs, attentionMs, contextTokenMs: decodeSmall[1], decodeMs: decodeSmall[2] },
    kvTokenCapacity,
    kvBytesPerToken: 819_200,
    contextLength: 16_384,
    price: A100_PRICE,
  };
}

/** Of a profile on an A100 the one on an H100, by the ratios of their peaks: a bound, since no kernel reaches them alike. */
function onH100(profile: DeviceProfile): DeviceProfile {
  const { fixedMs, promptTokenMs, attentionMs, decodeMs, contextTokenMs } = profile.believed;
  const arithmetic = ({ promptTokenCount, attentionArea }: StepWork) =>
    promptTokenMs * promptTokenCount + attentionMs * attentionArea;
  return {
    ...profile,
    name: profile.name.replace("an A100", "an H100, scaled by peaks").replace("A100s", "H100s, scaled by peaks"),
    stepMs: (work) => H100_MEMORY * (profile.stepMs(work) - arithmetic(work)) + H100_ARITHMETIC * arithmetic(work),
    believed: {
      fixedMs: H100_MEMORY * fixedMs,
      promptTokenMs: H100_ARITHMETIC * promptTokenMs,
      attentionMs: H100_ARITHMETIC * attentionMs,
      decodeMs: H100_MEMORY * decodeMs,
      contextTokenMs: H100_MEMORY * contextTokenMs,
    },
    price: H100_PRICE,
  };
}

/** Of NVIDIA Dynamo's mocker: 16,384 blocks of 64 tokens. */
const MOCKER_TOKENS = 16_384 * 64;

/**
 * The default timing of NVIDIA Dynamo's mocker (1.6, `timing_model: polynomial`), as its own replay shows it: a pass takes
 * `16.5 + 0.0152·new + 4.21e-7·new²` ms for new prompt tokens, whatever is before them, plus `5.74 + 54.01·u − 25.74·u²` ms where it decodes, with u the
 * share of the KV pool that the decoding contexts fill.
 */
function mocker({ promptTokenCount: tokens, decodeCount, contextTokenCount }: StepWork): number {
  const used = contextTokenCount / MOCKER_TOKENS;
  const prefillMs = tokens > 0 ? 16.50142 + 1.518344e-2 * tokens + 4.209989e-7 * tokens ** 2 : 0;
  return prefillMs + (decodeCount > 0 ? 5.74 + 54.01 * used - 25.74 * used ** 2 : 0);
}

const byDegree = ({ degree }: (typeof OPT_13B)[number]): string => (degree === 1 ? "" : `-tp${degree}`);

export const DEVICE_PROFILES: Readonly<Record<string, DeviceProfile>> = {
  ...Object.fromEntries(OPT_13B.map((entry) => [`a100-opt-13b${byDegree(entry)}`, opt13b(entry)])),
  ...Object.fromEntries(OPT_13B.map((entry) => [`h100-opt-13b${byDegree(entry)}`, onH100(opt13b(entry))])),
  "h100-8b": {
    name: "an 8B model with grouped queries on an H100 (roofline)",
    stepMs: linear(H100_8B),
    believed: H100_8B,
    kvTokenCapacity: 420_000,
    kvBytesPerToken: 131_072,
    contextLength: 131_072,
    price: H100_PRICE,
  },
  "dynamo-mocker": {
    name: "NVIDIA Dynamo's mocker (its default timing)",
    stepMs: mocker,
    believed: {
      fixedMs: 5.74,
      promptStepMs: 10.8,
      promptTokenMs: 0.0186,
      attentionMs: 0,
      decodeMs: 0,
      contextTokenMs: 54.01 / MOCKER_TOKENS,
    },
    kvTokenCapacity: MOCKER_TOKENS,
    kvBytesPerToken: 131_072,
    contextLength: 262_144,
  },
  "cpu-smollm2": {
    name: "SmolLM2-135M on the CPU engine, two cores",
    stepMs: linear(CPU_SMOLLM2),
    believed: CPU_SMOLLM2,
    kvTokenCapacity: 65_536,
    kvBytesPerToken: 46_080,
    contextLength: 8_192,
  },
};

/** What a planned step computes. */
export function workOfPlan(plan: StepPlan): StepWork {
  let attentionArea = 0;
  let contextTokenCount = 0;
  for (let index = 0; index < plan.slices.length; index++) {
    const { startPosition, tokenCount } = plan.slices[index]!;
    // Decodes come first.
    if (index < plan.decodeTokenCount) contextTokenCount += startPosition;
    else attentionArea += (startPosition + tokenCount) ** 2 - startPosition ** 2;
  }
  return {
    promptTokenCount: plan.promptTokenCount,
    attentionArea,
    decodeCount: plan.decodeTokenCount,
    contextTokenCount,
  };
}
