import { expect, test } from "vitest";
import { prefillMs, type StepCost, StepCostModel, type StepWork, stepMs } from "./index.ts";

/** OPT-13B on an A100 by DistServe's profile, in steps of one device. */
const A100: StepCost = {
  fixedMs: 18,
  promptTokenMs: 0.102,
  attentionMs: 7.1e-6,
  decodeMs: 0.0385,
  contextTokenMs: 6.3e-4,
};
const GUESS: StepCost = { fixedMs: 50, promptTokenMs: 0.5, attentionMs: 1e-5, decodeMs: 0.5, contextTokenMs: 1e-3 };

/** A generator of its own, so that each run draws the same. */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

function anyWork(random: () => number): StepWork {
  const promptTokenCount = random() < 0.5 ? 0 : Math.ceil(random() * 512);
  const before = Math.floor(random() * 4_000);
  const decodeCount = Math.ceil(random() * 64);
  return {
    promptTokenCount,
    attentionArea: (before + promptTokenCount) ** 2 - before ** 2,
    decodeCount,
    contextTokenCount: decodeCount * Math.ceil(random() * 2_000),
  };
}

/** Mean relative error over fresh steps. */
function errorOf(model: StepCostModel, truth: StepCost, random: () => number): number {
  const cost = model.cost();
  if (cost === undefined) throw new Error("the model has no cost yet");
  let sum = 0;
  for (let i = 0; i < 200; i++) {
    const work = anyWork(random);
    sum += Math.abs(stepMs(cost, work) / stepMs(truth, work) - 1) / 200;
  }
  return sum;
}

test("the cost of steps is learnt from noisy ones, from a belief that is several times wrong", () => {
  const random = randomOf(1);
  const model = new StepCostModel(GUESS);
  expect(model.cost()).toBeUndefined();
  for (let i = 0; i < 400; i++) {
    const work = anyWork(random);
    model.observe(work, stepMs(A100, work) * (0.95 + 0.1 * random()));
  }
  expect(errorOf(model, A100, random)).toBeLessThan(0.03);
});

test("a step with a prompt may cost more whatever its length, and prompts' tokens are not blamed for it", () => {
  const random = randomOf(4);
  const truth = { ...A100, fixedMs: 6, promptStepMs: 16 };
  const model = new StepCostModel(GUESS);
  for (let i = 0; i < 600; i++) {
    const work = anyWork(random);
    model.observe(work, stepMs(truth, work) * (0.98 + 0.04 * random()));
  }
  const { promptStepMs = 0, promptTokenMs = 0 } = model.cost() ?? {};
  expect(promptStepMs).toBeGreaterThan(13);
  expect(promptStepMs).toBeLessThan(19);
  expect(Math.abs(promptTokenMs / truth.promptTokenMs - 1)).toBeLessThan(0.1);
});

test("one step in twenty that takes ten times as long hardly moves it", () => {
  const random = randomOf(2);
  const model = new StepCostModel(A100);
  for (let i = 0; i < 1_000; i++) {
    const work = anyWork(random);
    model.observe(work, stepMs(A100, work) * (0.97 + 0.06 * random()) * (i % 20 === 7 ? 10 : 1));
  }
  expect(errorOf(model, A100, random)).toBeLessThan(0.05);
});

test("a device that becomes half as fast is followed within two hundred steps", () => {
  const random = randomOf(3);
  const model = new StepCostModel(A100);
  const slow = Object.fromEntries(
    Object.entries(A100).map(([name, value]) => [name, value * 2]),
  ) as unknown as StepCost;
  for (let i = 0; i < 300; i++) {
    const work = anyWork(random);
    model.observe(work, stepMs(A100, work) * (0.97 + 0.06 * random()));
  }
  expect(errorOf(model, slow, random)).toBeGreaterThan(0.4);
  for (let i = 0; i < 200; i++) {
    const work = anyWork(random);
    model.observe(work, stepMs(slow, work) * (0.97 + 0.06 * random()));
  }
  expect(errorOf(model, slow, random)).toBeLessThan(0.06);
});

test("a worker that reports nonsense leaves it as it is; one that only prefills keeps what was believed of decoding", () => {
  const random = randomOf(4);
  const model = new StepCostModel(A100);
  for (let i = 0; i < 2_000; i++) {
    const work: StepWork = { ...anyWork(random), promptTokenCount: 256, decodeCount: 0, contextTokenCount: 0 };
    model.observe(work, i % 3 === 0 ? [Number.NaN, -5, 0, Number.POSITIVE_INFINITY][i % 4]! : stepMs(A100, work));
  }
  const cost = model.cost();
  expect(cost?.decodeMs).toBeCloseTo(A100.decodeMs, 6);
  expect(cost?.contextTokenMs).toBeCloseTo(A100.contextTokenMs, 8);
  expect(prefillMs(cost ?? GUESS, 2_048, 1_024, 512) / prefillMs(A100, 2_048, 1_024, 512)).toBeCloseTo(1, 1);
});

test("a cached prefix saves its tokens and its part of the attention, and never the last token", () => {
  const cost: StepCost = { fixedMs: 10, promptTokenMs: 1, attentionMs: 0.001, decodeMs: 0, contextTokenMs: 0 };
  expect(prefillMs(cost, 100, 0, 512)).toBeCloseTo(10 + 100 + 10);
  expect(prefillMs(cost, 100, 60, 512)).toBeCloseTo(10 + 40 + 0.001 * (10_000 - 3_600));
  expect(prefillMs(cost, 100, 100, 512)).toBeCloseTo(10 + 1 + 0.001 * (10_000 - 9_801));
  expect(prefillMs(cost, 1_000, 0, 512)).toBeCloseTo(20 + 1_000 + 1_000);
});

test("a step that computes nothing is no sample: what any step costs is learnt from those that compute", () => {
  const random = randomOf(5);
  const truth = { ...A100, fixedMs: 12, decodeMs: 1 };
  const model = new StepCostModel(GUESS);
  const empty: StepWork = { promptTokenCount: 0, attentionArea: 0, decodeCount: 0, contextTokenCount: 0 };
  for (let i = 0; i < 400; i++) {
    const work = anyWork(random);
    model.observe(work, stepMs(truth, work) * (0.97 + 0.06 * random()));
    if (i % 5 === 0) model.observe(empty, 0.003);
  }
  expect(errorOf(model, truth, random)).toBeLessThan(0.03);
  expect((model.cost()?.fixedMs ?? 0) / truth.fixedMs).toBeGreaterThan(0.9);
});

test("where a term would be negative, the others are what they are without it, and steps are predicted as they were", () => {
  const random = randomOf(6);
  // Prompts take less than their tokens would: the fit would give them a negative fixed part.
  const model = new StepCostModel(GUESS);
  const truth = (work: StepWork): number => stepMs(A100, work) - (work.promptTokenCount > 0 ? 8 : 0);
  const works = Array.from({ length: 600 }, () => anyWork(random));
  for (const work of works) model.observe(work, truth(work));
  const cost = model.cost();
  if (cost === undefined) throw new Error("the model has no cost yet");
  const ratios = works.map((work) => stepMs(cost, work) / truth(work));
  expect(Math.min(...Object.values(cost))).toBe(0);
  expect(ratios.reduce((sum, ratio) => sum + ratio, 0) / ratios.length).toBeCloseTo(1, 1);
});
