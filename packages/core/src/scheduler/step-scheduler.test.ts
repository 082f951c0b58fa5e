import { expect, test } from "vitest";
import { type Instant, nanosFromMs } from "../time.ts";
import { clipMaxTokens, worstCaseBlockCount } from "./capacity.ts";
import type { SchedulerEvent, SequenceId, SequenceKind, SliceOutcome, StepPlan } from "./events.ts";
import { StepScheduler } from "./step-scheduler.ts";

const at = (ms: number) => nanosFromMs(ms) as number as Instant;
const id = (value: number) => value as SequenceId;

function scheduler(blockCount = 16, tokenBudget = 8, sequenceCountMax = 4): StepScheduler {
  return new StepScheduler({ blockCount, blockSize: 4, tokenBudget, sequenceCountMax, pinnedShareMax: 0.7 });
}

function arrived(sequenceId: number, kind: SequenceKind, promptTokenCount: number, maxTokens: number): SchedulerEvent {
  const promptTokenIds = Array.from({ length: promptTokenCount }, (_, index) => 100 + index);
  const spec = { sequenceId: id(sequenceId), kind, promptTokenIds, maxTokens, stopTokenIds: [7] };
  return { kind: "SequenceArrived", spec, waitUntil: at(1000) };
}

function answer(plan: StepPlan | undefined, ...outcomes: (SliceOutcome | number)[]): SchedulerEvent {
  const results = (plan?.slices ?? []).map((slice, index) => {
    const outcome = outcomes[index];
    if (typeof outcome !== "number") return { sequenceId: slice.sequenceId, outcome: outcome ?? "computed" };
    const stopped = outcome === 7;
    return {
      sequenceId: slice.sequenceId,
      outcome: stopped ? ("stopped" as const) : ("sampled" as const),
      token: { tokenId: outcome, topLogprobs: [] },
    };
  });
  return { kind: "StepCompleted", stepId: plan?.stepId ?? 0, results };
}

const sliced = (plan: StepPlan | undefined) =>
  plan?.slices.map((slice) => [slice.sequenceId, slice.startPosition, slice.tokenCount, slice.sample]);

test("decodes come first, then the partial prompt, then the new one, within the budget", () => {
  const steps = scheduler();
  steps.apply(arrived(1, "local", 4, 9), at(0));
  const first = steps.plan();
  steps.apply(arrived(2, "local", 10, 2), at(0));
  steps.apply(arrived(3, "local", 5, 2), at(0));
  const second = steps.plan();
  expect(sliced(second)).toEqual([
    [1, 4, 1, true],
    [2, 0, 7, false],
  ]);
  steps.apply(answer(first, 50), at(1));
  expect(sliced(steps.plan())).toEqual([
    [1, 5, 1, true],
    [2, 7, 3, true],
    [3, 0, 4, false],
  ]);
});

test("a sequence is planned again before its last token is known, and its end makes the extra slice harmless", () => {
  const steps = scheduler();
  steps.apply(arrived(1, "local", 3, 9), at(0));
  const first = steps.plan();
  const second = steps.plan();
  expect(second?.slices[0]).toMatchObject({ startPosition: 3, tokenIds: [], appendedBlockIds: [] });
  expect(steps.plan()).toBeUndefined();
  expect(steps.apply(answer(first, 7), at(1))).toMatchObject([{ kind: "DeliverToken", tokenIndex: 0, end: "stop" }]);
  expect(steps.pool.takenCount).toBe(1);
  expect(steps.apply(answer(second, "skipped"), at(2))).toEqual([{ kind: "ForgetSequence", sequenceId: 1 }]);
  expect(steps.pool.takenCount).toBe(0);
  expect(steps.plan()).toMatchObject({ slices: [], droppedSequenceIds: [1] });
});

test("nothing is planned beyond max_tokens", () => {
  const steps = scheduler();
  steps.apply(arrived(1, "local", 3, 2), at(0));
  const plans = [steps.plan(), steps.plan()];
  steps.apply(answer(plans[0], 50), at(1));
  expect(steps.plan()).toBeUndefined();
  expect(steps.apply(answer(plans[1], 51), at(2))[0]).toMatchObject({
    kind: "DeliverToken",
    tokenIndex: 1,
    end: "length",
  });
});

test("the head of the queue is not overtaken by a smaller one, and is refused at its time", () => {
  const steps = scheduler(4);
  steps.apply(arrived(1, "local", 8, 4), at(0));
  expect(steps.apply(arrived(2, "local", 8, 4), at(0))).toEqual([]);
  expect(steps.apply(arrived(3, "local", 2, 1), at(0))).toEqual([]);
  expect(steps.nextRefusal()).toBe(at(1000));
  expect(steps.apply({ kind: "SequenceClosed", sequenceId: id(2) }, at(1))).toMatchObject([
    { kind: "ForgetSequence", sequenceId: 2 },
    { kind: "AnnounceAdmission", sequenceId: 3 },
  ]);
  steps.apply(arrived(4, "local", 8, 4), at(2));
  expect(steps.apply({ kind: "TimePassed" }, at(1000))).toEqual([{ kind: "RefuseSequence", sequenceId: 4 }]);
});

test("a prefill sequence names its blocks at admission, computes after its export opened, and holds them until the transfer closed", () => {
  const steps = scheduler();
  const [admission] = steps.apply(arrived(1, "prefill", 6, 9), at(0));
  expect(admission).toEqual({ kind: "AnnounceAdmission", sequenceId: 1, blockIds: [0, 1], cachedTokenCount: 0 });
  expect(steps.plan()).toBeUndefined();
  steps.apply({ kind: "ExportOpened", sequenceId: id(1) }, at(0));
  const plan = steps.plan();
  expect(plan).toMatchObject({
    starts: [{ sequenceId: 1, promptTokenCount: 6, blockIds: [0, 1] }],
    promptTokenCount: 6,
  });
  expect(steps.apply(answer(plan, 50), at(1))).toMatchObject([{ kind: "DeliverToken", tokenIndex: 0, end: undefined }]);
  expect(steps.plan()).toMatchObject({ droppedSequenceIds: [1] });
  expect(steps.apply({ kind: "SequenceClosed", sequenceId: id(1) }, at(2))).toEqual([]);
  expect(steps.pool.takenCount).toBe(2);
  expect(steps.apply({ kind: "TransferClosed", sequenceId: id(1) }, at(3))).toEqual([
    { kind: "ForgetSequence", sequenceId: 1 },
  ]);
});

test("no further prefill is admitted while computed prompts pin more than their share", () => {
  const steps = scheduler(4, 16);
  for (const sequenceId of [1, 2]) {
    const blocks = steps.apply(arrived(sequenceId, "prefill", sequenceId === 1 ? 12 : 4, 9), at(0));
    if (sequenceId === 1) expect(blocks).toHaveLength(1);
    if (sequenceId === 1) steps.apply({ kind: "ExportOpened", sequenceId: id(1) }, at(0));
    if (sequenceId === 1) steps.plan();
    else expect(blocks).toEqual([]);
  }
});

test("a decode sequence holds a count first, blocks with the ticket, and joins with the first token", () => {
  const steps = scheduler();
  steps.apply(arrived(1, "decode", 8, 3), at(0));
  expect([steps.pool.reservedCount, steps.pool.takenCount]).toEqual([3, 0]);
  expect(steps.apply({ kind: "KvOffered", sequenceId: id(1) }, at(0))).toEqual([
    { kind: "OpenFetch", sequenceId: 1, blockIds: [0, 1] },
  ]);
  steps.apply({ kind: "KvArrived", sequenceId: id(1), firstTokenId: 50 }, at(1));
  expect(steps.plan()).toMatchObject({
    starts: [{ sequenceId: 1, promptTokenCount: 8, blockIds: [0, 1] }],
    slices: [{ startPosition: 8, tokenCount: 1, tokenIds: [50], appendedBlockIds: [2], sample: true }],
  });
  expect(steps.plan()?.slices[0]).toMatchObject({ startPosition: 9, tokenIds: [], appendedBlockIds: [] });
  expect(steps.plan()).toBeUndefined();
});

test("an answer that is not the next step's, or not for its slices, is a defect", () => {
  const steps = scheduler();
  steps.apply(arrived(1, "local", 3, 9), at(0));
  const plan = steps.plan();
  expect(() => steps.apply({ kind: "StepCompleted", stepId: 2, results: [] }, at(0))).toThrow(
    "step 2 is answered, 1 was next",
  );
  expect(plan?.stepId).toBe(1);
});

test("capacity: output is cut at the context, and a prefill never holds blocks for output", () => {
  expect(clipMaxTokens(60, 100, 64)).toBe(4);
  expect(clipMaxTokens(64, 100, 64)).toBe(0);
  expect(worstCaseBlockCount("local", 5, 4, 4)).toBe(3);
  expect(worstCaseBlockCount("prefill", 5, 400, 4)).toBe(2);
});
