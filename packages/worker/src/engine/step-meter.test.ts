import type { StepPlan } from "@kvasir/core";
import { expect, test } from "vitest";
import { StepMeter } from "./step-meter.ts";

/** A step that decodes so many sequences of 100 tokens, and computes a prompt of so many. */
function plan(decodeTokenCount: number, promptTokenCount: number): StepPlan {
  const slice = (startPosition: number, tokenCount: number) => ({ startPosition, tokenCount });
  const decodes = Array.from({ length: decodeTokenCount }, () => slice(100, 1));
  const slices = [...decodes, ...(promptTokenCount > 0 ? [slice(0, promptTokenCount)] : [])];
  return { slices, decodeTokenCount, promptTokenCount } as unknown as StepPlan;
}

test("a worker that has computed no prompt says that it knows no cost of prompts, and learns it with the first ones", () => {
  const meter = new StepMeter();
  const run = (decodes: number, prompt: number) => meter.observe(plan(decodes, prompt), (10 + decodes + prompt) * 1e6);
  expect(meter.stepCost()).toBeUndefined();
  for (let step = 0; step < 60; step++) run(1 + (step % 8), 0);
  expect(meter.stepCost()).toMatchObject({ promptTokenMs: 0, promptStepMs: 0, attentionMs: 0 });
  expect(meter.stepCost()?.fixedMs).toBeCloseTo(10, 0);
  for (let step = 0; step < 60; step++) run(step % 3, 20 * (1 + (step % 5)));
  expect(meter.stepCost()?.promptTokenMs).toBeCloseTo(1, 1);
});

test("steps that compute nothing change nothing", () => {
  const meter = new StepMeter();
  for (let step = 0; step < 60; step++) {
    meter.observe(plan(1 + (step % 8), 0), (11 + (step % 8)) * 1e6);
    meter.observe(plan(0, 0), 3_000);
  }
  expect(meter.stepCost()?.fixedMs).toBeCloseTo(10, 0);
  expect(meter.decodeStepMs).toBeGreaterThan(10);
});
