import type { PlacementPolicy } from "@kvasir/core";
import { expect, test } from "vitest";
import { rolesOf, SIMULATION_DEFAULTS } from "./cluster-spec.ts";
import type { DeviceProfile } from "./device-profile.ts";
import { leastLoadPolicy, mooncakePolicy, randomPolicy } from "./policies/baselines.ts";
import { simulate } from "./simulation.ts";
import { goodputFactor, summarize } from "./summary.ts";
import { a100, conversationTrace, poissonTrace } from "./testing/worlds.ts";
import { scaleRate } from "./trace.ts";

const PROMPT = 512;
/** Milliseconds that one prompt takes on one device. */
const D = 200;

/** Every step takes the same, whatever it computes. */
function constant(stepMs: number, stageCount: 1 | 2 = 1): DeviceProfile {
  return {
    name: "constant",
    stepMs: () => stepMs,
    stageCount,
    believed: { fixedMs: stepMs, promptTokenMs: 0, attentionMs: 0, decodeMs: 0, contextTokenMs: 0 },
    kvTokenCapacity: 512 * 4_096,
    kvBytesPerToken: 1,
    contextLength: 4_096,
  };
}

/** Mean TTFT of prompts that fill a step each, in units of D; `load` is R·D. */
function meanTtft(profile: DeviceProfile, load: number, count = 25_000): number {
  const trace = poissonTrace(load / (D / 1_000), count, 11, () => ({ promptTokenCount: PROMPT, outputTokenCount: 1 }));
  const spec = {
    ...SIMULATION_DEFAULTS,
    profile,
    roles: rolesOf({ mixed: 1 }),
    rpcMs: 0,
    reportMs: 1_000,
    tokenBudget: PROMPT,
  };
  return summarize(simulate(spec, trace), { ttftMs: 1, tbtMs: 1 }).meanTtftMs / D;
}

// DistServe (Zhong et al., OSDI 2024), §3.1: prompts that saturate a device, first come first served, Poisson arrivals.
test.each([
  ["one device, M/D/1", constant(D), 0.6, (r: number) => 1 + r / (2 * (1 - r))],
  ["two pipeline stages", constant(D, 2), 1.1, (r: number) => 1 + r / (4 * (2 - r))],
  [
    "two devices for each step, speed-up 1.5",
    constant(D / 1.5),
    0.8,
    (r: number) => 1 / 1.5 + r / (2 * 1.5 * (1.5 - r)),
  ],
] as const)(
  "%s: the mean TTFT is the formula's within 2 %%",
  (_, profile, load, formula) => {
    expect(Math.abs(meanTtft(profile, load) / formula(load) - 1)).toBeLessThan(0.02);
  },
  60_000,
);

test("intra-operator parallelism wins at a low rate, inter-operator at a high one", () => {
  const inter = (r: number) => meanTtft(constant(D, 2), r, 8_000);
  const intra = (r: number) => meanTtft(constant(D / 1.3), r, 8_000);
  // The formulas cross at R·D = 0.61 for a speed-up of 1.3.
  expect(intra(0.4)).toBeLessThan(inter(0.4));
  expect(intra(0.85)).toBeGreaterThan(inter(0.85));
}, 120_000);

test("at a strict TBT three devices serve more requests split than each doing both; at a relaxed one fewer", () => {
  const trace = poissonTrace(1, 200, 5, (random) => ({
    promptTokenCount: 1_500 + Math.floor(random() * 2_000),
    outputTokenCount: 40 + Math.floor(random() * 80),
  }));
  const link = { bytesPerSecond: 50e9, latencyMs: 0.1 };
  const goodput = (counts: Parameters<typeof rolesOf>[0], tbtMs: number): number =>
    goodputFactor(
      (factor) =>
        summarize(simulate(a100(counts, { link }), scaleRate(trace, factor)), { ttftMs: 3_000, tbtMs }).attainment,
      1,
      20,
    );
  const split = { prefill: 2, decode: 1 };
  const both = { mixed: 3 };
  expect(goodput(split, 50) / goodput(both, 50)).toBeGreaterThan(1.2);
  expect(goodput(split, 200) / goodput(both, 200)).toBeLessThan(0.9);
}, 120_000);

test("mean TTFT in the order of Mooncake's evaluation: random, then least load, then least load and cache together", () => {
  // Mooncake (FAST 2025): 19.65, 5.27 and 3.58 s on its cluster.
  const trace = conversationTrace(9, 500, 12);
  const ttftMs = (policy: PlacementPolicy) =>
    summarize(simulate(a100({ prefill: 4, decode: 6 }, { policy }), trace), { ttftMs: 1, tbtMs: 1 }).meanTtftMs;
  const random = ttftMs(randomPolicy());
  const leastLoad = ttftMs(leastLoadPolicy());
  const conductor = ttftMs(mooncakePolicy(a100({ mixed: 1 }).profile.believed, 512));
  expect(leastLoad).toBeLessThan(0.8 * random);
  expect(conductor).toBeLessThan(0.9 * leastLoad);
}, 60_000);
