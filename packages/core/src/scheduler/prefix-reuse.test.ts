import { expect, test } from "vitest";
import { prefixRoot } from "../prefix/block-hash.ts";
import type { TokenSpan } from "../prefix-fetch/token-span.ts";
import type { Instant } from "../time.ts";
import type { SchedulerEffect, SequenceId, SequenceKind, SequenceSpec, SliceResult } from "./events.ts";
import { StepScheduler } from "./step-scheduler.ts";

const BLOCK_SIZE = 4;
const NOW = 0 as Instant;
const id = (value: number) => value as SequenceId;
const rootOf = (tenant: number) =>
  prefixRoot({ tenantScope: new Uint8Array(16).fill(tenant), fingerprint: new Uint8Array(16) }, BLOCK_SIZE);
const text = (count: number, first = 0) => Array.from({ length: count }, (_, index) => first + index);

/** A scheduler whose device samples 50, 51, ... and whose steps are answered in their turn. */
class Bench {
  readonly steps: StepScheduler;
  readonly effects: SchedulerEffect[] = [];
  #planned: NonNullable<ReturnType<StepScheduler["plan"]>>[] = [];
  #sampledCount = 0;

  constructor(blockCount = 16, tokenBudget = 8) {
    const sequenceCountMax = 8;
    this.steps = new StepScheduler({
      blockCount,
      blockSize: BLOCK_SIZE,
      tokenBudget,
      sequenceCountMax,
      pinnedShareMax: 1,
    });
  }

  arrive(sequenceId: number, kind: SequenceKind, promptTokenIds: number[], rest: Partial<SequenceSpec> = {}): number {
    const common = { maxTokens: 2, stopTokenIds: [], prefixRoot: rootOf(1) };
    const spec = { sequenceId: id(sequenceId), kind, promptTokenIds, ...common, ...rest };
    this.apply({ kind: "SequenceArrived", spec, waitUntil: 1e9 as Instant });
    return this.cachedAtAdmission(sequenceId);
  }

  cachedAtAdmission(sequenceId: number): number {
    const found = this.effects.find(
      (effect) => effect.kind === "AnnounceAdmission" && effect.sequenceId === sequenceId,
    );
    return found?.kind === "AnnounceAdmission" ? found.cachedTokenCount : -1;
  }

  apply(event: Parameters<StepScheduler["apply"]>[0]): void {
    this.effects.push(...this.steps.apply(event, NOW));
    this.steps.checkInvariants();
  }

  plan() {
    const plan = this.steps.plan();
    this.steps.checkInvariants();
    if (plan) this.#planned.push(plan);
    return plan;
  }

  answer(): void {
    const plan = this.#planned.shift();
    if (plan === undefined) throw new Error("no step is unanswered");
    const results = plan.slices.map(({ sequenceId, sample }): SliceResult => {
      if (!sample) return { sequenceId, outcome: "computed" };
      return { sequenceId, outcome: "sampled", token: { tokenId: 50 + this.#sampledCount++, topLogprobs: [] } };
    });
    this.apply({ kind: "StepCompleted", stepId: plan.stepId, results });
  }

  settle(): void {
    for (let plan = this.plan(); plan !== undefined || this.#planned.length > 0; plan = this.plan()) this.answer();
  }
}

test("a prompt that was here computes its last token only, as far as blocks go; another tenant's all of it", () => {
  const bench = new Bench();
  expect(bench.arrive(1, "local", text(12))).toBe(0);
  bench.settle();
  expect(bench.arrive(2, "local", text(12))).toBe(8);
  expect(bench.plan()).toMatchObject({
    slices: [{ startPosition: 8, tokenCount: 4 }],
    starts: [{ cachedTokenCount: 8 }],
  });
  bench.settle();
  expect(bench.arrive(3, "local", text(13))).toBe(12);
  expect(bench.arrive(4, "local", [...text(5), 99, ...text(7)])).toBe(4);
  expect(bench.arrive(5, "local", text(13), { prefixRoot: rootOf(2) })).toBe(0);
});

test("nothing is reused before its step is answered, and a request that waits behind another gets what that computed", () => {
  const bench = new Bench(16, 4);
  bench.arrive(1, "local", text(9));
  expect(bench.arrive(2, "local", text(9))).toBe(0);
  bench.plan();
  bench.plan();
  // Both steps of the first are on their way: nothing is there for the second.
  expect(bench.steps.pool.cachedCount).toBe(0);
  bench.answer();
  bench.answer();
  expect(bench.plan()).toMatchObject({
    slices: [
      { sequenceId: 1, startPosition: 8 },
      { sequenceId: 2, startPosition: 8 },
    ],
    starts: [{ sequenceId: 2, cachedTokenCount: 8 }],
  });
});

test("what was generated is reused by the next turn of a conversation", () => {
  const bench = new Bench();
  bench.arrive(1, "local", text(6), { maxTokens: 4 });
  bench.settle();
  // Tokens 50 to 52 are in the pool; 53 was sampled last and never computed.
  expect(bench.arrive(2, "local", [...text(6), 50, 51, 52, 53, 7])).toBe(8);
});

test("output that a sequence brings along is computed again: sampling reads it", () => {
  const bench = new Bench();
  bench.arrive(1, "local", text(6), { maxTokens: 8 });
  bench.settle();
  expect(bench.arrive(2, "local", text(6), { maxTokens: 8, outputTokenIds: [50, 51, 52, 53, 54] })).toBe(4);
  expect(bench.plan()).toMatchObject({ slices: [{ startPosition: 4, tokenCount: 7 }] });
});

test("a prefill sequence that waited copies into the blocks that it has named, and serves all of them", () => {
  const bench = new Bench(16, 4);
  bench.arrive(1, "prefill", text(9));
  bench.arrive(2, "prefill", text(9));
  for (const sequenceId of [1, 2]) bench.apply({ kind: "ExportOpened", sequenceId: id(sequenceId) });
  bench.plan();
  bench.plan();
  bench.answer();
  bench.answer();
  const plan = bench.plan();
  expect(plan?.copies).toEqual([
    { sourceBlockId: 0, targetBlockId: 3, tokenCount: 4 },
    { sourceBlockId: 1, targetBlockId: 4, tokenCount: 4 },
  ]);
  expect(plan?.slices).toMatchObject([{ sequenceId: 1 }, { sequenceId: 2, startPosition: 8 }]);
  expect(bench.steps.pool.holderCount(0)).toBe(2);
  bench.settle();
  expect(bench.steps.pool.holderCount(0)).toBe(1);
  for (const sequenceId of [1, 2]) {
    bench.apply({ kind: "SequenceClosed", sequenceId: id(sequenceId) });
    bench.apply({ kind: "TransferClosed", sequenceId: id(sequenceId) });
  }
  // One copy of each block is worth keeping.
  expect([bench.steps.pool.freeCount, bench.steps.pool.idleCount]).toEqual([16, 2]);
  expect(bench.arrive(3, "prefill", text(9))).toBe(8);
});

test("a prefill sequence computes around what it fetches, behind others, and keeps all of it for those who follow", () => {
  const bench = new Bench(32, 16);
  bench.arrive(1, "prefill", text(30));
  bench.apply({ kind: "KvAwaited", sequenceId: id(1), span: { begin: 0, end: 28 } });
  bench.apply({ kind: "ExportOpened", sequenceId: id(1) });
  expect(bench.steps.load().queuedPromptTokenCount).toBe(2);
  expect(bench.plan()).toBeUndefined();
  // Its front is computed after all, behind others.
  bench.apply({ kind: "KvAwaited", sequenceId: id(1), span: { begin: 12, end: 28 } });
  bench.arrive(4, "local", text(9, 300), { maxTokens: 1 });
  expect(bench.plan()?.slices).toMatchObject([
    { sequenceId: 4, tokenCount: 9 },
    { sequenceId: 1, startPosition: 0, tokenCount: 7 },
  ]);
  expect(bench.plan()?.slices).toMatchObject([{ sequenceId: 1, startPosition: 7, tokenCount: 5 }]);
  bench.settle();
  const spans = [
    { begin: 12, end: 20 },
    { begin: 24, end: 28 },
  ];
  bench.apply({ kind: "KvFetched", sequenceId: id(1), spans });
  expect(bench.steps.load().queuedPromptTokenCount).toBe(6);
  expect(bench.plan()?.slices).toMatchObject([{ sequenceId: 1, startPosition: 20, tokenCount: 4 }]);
  expect(bench.plan()?.slices).toMatchObject([{ sequenceId: 1, startPosition: 28, tokenCount: 2 }]);
  bench.settle();
  expect(bench.arrive(2, "prefill", text(30))).toBe(28);
});

test("what has arrived in several places before a fetch that begins later is skipped in each of them", () => {
  const bench = new Bench(32, 16);
  bench.arrive(1, "prefill", text(30));
  const awaitFrom = (begin: number, arrived: readonly TokenSpan[]) =>
    bench.apply({ kind: "KvAwaited", sequenceId: id(1), span: { begin, end: 28 }, arrived });
  awaitFrom(0, []);
  bench.apply({ kind: "ExportOpened", sequenceId: id(1) });
  const first = { begin: 4, end: 8 };
  awaitFrom(8, [first]);
  awaitFrom(20, [first, { begin: 12, end: 16 }]);
  const planned = () => bench.plan()?.slices.map(({ startPosition, tokenCount }) => [startPosition, tokenCount]);
  expect(bench.steps.load().queuedPromptTokenCount).toBe(14);
  expect([planned(), planned()]).toEqual([[[0, 4]], [[8, 4]]]);
  bench.settle();
  expect(bench.steps.progressOf(id(1))?.plannedCount).toBe(20);
  bench.apply({ kind: "KvFetched", sequenceId: id(1), spans: [{ begin: 20, end: 28 }] });
  expect(planned()).toEqual([[28, 2]]);
});

test("of a prompt that goes on from lossy KV only what was computed before it came is kept", () => {
  const bench = new Bench(32, 16);
  bench.arrive(1, "prefill", text(30));
  bench.apply({ kind: "KvAwaited", sequenceId: id(1), span: { begin: 8, end: 28 } });
  bench.apply({ kind: "ExportOpened", sequenceId: id(1) });
  bench.settle();
  bench.apply({ kind: "KvFetched", sequenceId: id(1), spans: [{ begin: 8, end: 28 }], isApproximate: true });
  bench.settle();
  expect(bench.arrive(2, "prefill", text(30))).toBe(8);
});

test("a decode sequence fetches beyond what it has, and may go on from there without a fetch", () => {
  const bench = new Bench();
  bench.arrive(1, "decode", text(9));
  bench.apply({ kind: "KvOffered", sequenceId: id(1) });
  expect(bench.steps.pool.cachedCount).toBe(0);
  bench.apply({ kind: "KvArrived", sequenceId: id(1), firstTokenId: 5 });
  bench.apply({ kind: "TransferClosed", sequenceId: id(1) });
  bench.settle();
  expect(bench.arrive(2, "decode", text(11))).toBe(8);
  bench.apply({ kind: "KvOffered", sequenceId: id(2) });
  const opened = bench.effects.filter((effect) => effect.kind === "OpenFetch").at(-1);
  expect(opened).toMatchObject({ sequenceId: 2, blockIds: [0, 1, expect.any(Number)] });

  expect(bench.arrive(3, "decode", text(10))).toBe(8);
  bench.apply({ kind: "KvLost", sequenceId: id(3), verifiedTokenCount: 8 });
  expect(bench.plan()).toMatchObject({ slices: [{ sequenceId: 3, startPosition: 8, tokenCount: 2, sample: true }] });
});

test("approximate KV answers its own request, its siblings among them, and no other", () => {
  const bench = new Bench();
  bench.arrive(1, "decode", text(9), { maxTokens: 9, branches: [{ sequenceId: id(2) }] });
  bench.apply({ kind: "KvOffered", sequenceId: id(1) });
  bench.apply({ kind: "KvArrived", sequenceId: id(1), firstTokenId: 5, isApproximate: true });
  bench.apply({ kind: "TransferClosed", sequenceId: id(1) });
  bench.settle();
  expect(bench.steps.pool.cachedCount).toBe(0);
});

test("a prompt of which more is wanted than its KV is computed whole, and leaves its KV to others", () => {
  const bench = new Bench();
  for (const sequenceId of [1, 2]) {
    expect(bench.arrive(sequenceId, "local", text(9), { computesWholePrompt: true })).toBe(0);
    bench.settle();
  }
  expect(bench.arrive(3, "local", text(9))).toBe(8);
});

test("what others hold costs no room, and what nobody holds gives way", () => {
  const bench = new Bench(6, 8);
  bench.arrive(1, "local", text(13), { maxTokens: 3 });
  bench.plan();
  bench.plan();
  bench.answer();
  bench.answer();
  // Four of six blocks are held. Four more would not fit; one beyond three shared ones does.
  expect(bench.arrive(2, "local", text(13), { maxTokens: 3 })).toBe(12);
  bench.settle();
  expect(bench.arrive(3, "local", text(20, 500), { maxTokens: 4 })).toBe(0);
  bench.settle();
  expect(bench.steps.pool.evictedCount).toBeGreaterThan(0);
  expect(bench.steps.pool.freeCount).toBe(6);
});
