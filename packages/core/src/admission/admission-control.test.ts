import { expect, test } from "vitest";
import {
  candidateName,
  type PlacementDecision,
  type RequestKey,
  type RequestShape,
  type RouterEffect,
  type RouterEvent,
  type RouterOptions,
  RouterState,
} from "../placement/index.ts";
import { at, facts, load, request, routerOptions } from "../placement/testing/world.ts";

const COST = { fixedMs: 0, promptTokenMs: 1, attentionMs: 0, decodeMs: 0, contextTokenMs: 0 };

/** A router with mixed workers of 1,000 prompt tokens a second, each with room for a hundred requests of 32 tokens. */
class World {
  readonly state: RouterState;
  readonly decisions = new Map<number, PlacementDecision>();
  readonly refusals = new Map<number, Extract<RouterEffect, { kind: "RejectRequest" }>>();
  readonly placed: number[] = [];
  nowMs = 0;

  constructor(workerCount: number, extra: Partial<RouterOptions> = {}, blockCount = 1_000, stepCost = COST) {
    const workerQueue = { promptCount: 1, queueMaxMs: 0 };
    this.state = new RouterState(routerOptions({ queueMax: 100, workerQueue, ...extra }));
    for (let streamId = 1; streamId <= workerCount; streamId++) {
      const worker = facts(`m${streamId}`, { blockCount });
      this.apply({ kind: "WorkerAttached", streamId, epoch: 1, sequence: 1, facts: worker });
      const report = load({ freeBlockCount: blockCount, stepCost });
      this.apply({ kind: "WorkerReported", streamId, epoch: 1, sequence: 2, load: report });
    }
  }

  apply(event: RouterEvent): readonly RouterEffect[] {
    const effects = this.state.apply(event, at(this.nowMs));
    this.state.checkInvariants();
    for (const effect of effects) {
      if (effect.kind === "RejectRequest") this.refusals.set(effect.key, effect);
      if (effect.kind !== "SendPlacement") continue;
      this.decisions.set(effect.key, effect.decision);
      this.placed.push(effect.key);
    }
    return effects;
  }

  arrive(key: number, tenant: string, extra: Partial<RequestShape> = {}): void {
    const shape = { ...request(100, 20), tenant, ...extra };
    this.apply({ kind: "RequestArrived", key: key as RequestKey, request: shape });
  }

  /** The prompt that was placed last but `index` is computed. */
  compute(key: number): void {
    this.apply({ kind: "FirstTokenArrived", key: key as RequestKey });
  }

  end(key: number, outputTokenCount: number): void {
    this.apply({ kind: "RequestEnded", key: key as RequestKey, outcome: { outputTokenCount, tbtMs: 10 } });
  }
}

test("while every worker computes, requests wait here: a tenant with sixty of them delays another by two prompts", () => {
  const world = new World(2);
  for (let key = 1; key <= 60; key++) world.arrive(key, "flood");
  expect(world.placed).toEqual([1, 2]);
  world.nowMs = 40;
  world.arrive(61, "quiet");
  expect(world.state.queuedCount).toBe(59);
  world.nowMs = 100;
  world.compute(1);
  world.compute(2);
  expect(world.placed).toEqual([1, 2, 3, 61]);
  expect(world.decisions.get(61)?.waitedMs).toBe(60);
});

test("two tenants that always wait are served alike, by what they cost: long answers of one are made up for by more requests of the other", () => {
  const world = new World(1);
  for (let key = 1; key <= 60; key++) world.arrive(key, key % 2 === 0 ? "long" : "short", { maxTokens: 220 });
  const served = { long: 0, short: 0 };
  for (let turn = 0; turn < 40; turn++) {
    const key = world.placed[turn] as number;
    const tenant = key % 2 === 0 ? "long" : "short";
    world.nowMs += 100;
    world.compute(key);
    const outputs = tenant === "long" ? 200 : 10;
    served[tenant] += 100 + 2 * outputs;
    world.end(key, outputs);
  }
  // 500 tokens a request on one side, 120 on the other; nobody gets more than two of the largest ahead, once lengths are learnt.
  expect(world.placed.filter((key) => key % 2 === 1).length).toBeGreaterThan(25);
  expect(Math.abs(served.long - served.short)).toBeLessThan(4 * 540);
});

test("what cannot meet its target behind what waits is refused when it comes, with when to come back; who may be late goes last", () => {
  const world = new World(1);
  const within = (ttftMs: number, mayBeLate = false) => ({ objectives: { ttftMs, mayBeLate } });
  for (let key = 1; key <= 21; key++) world.arrive(key, "a", within(3_000));
  // The pace becomes known: one of 100 tokens in 100 ms.
  for (let turn = 0; turn < 6; turn++) {
    world.nowMs += 100;
    world.compute(world.placed[turn] as number);
  }
  expect(world.state.queuedCount).toBe(14);
  // Due just after those that wait.
  world.arrive(30, "a", within(2_401));
  expect([...world.refusals.keys()]).toEqual([]);
  world.arrive(31, "a", { ...within(2_402), promptTokenCount: 280, maxTokens: 10 });
  for (let key = 40; key < 45; key++) world.arrive(key, "a", within(2_500));
  expect(world.refusals.size).toBe(0);
  for (let key = 45; key <= 50; key++) world.arrive(key, "a", within(2_500));
  expect(world.refusals.get(50)).toMatchObject({ reason: "overloaded", code: "slo_unattainable" });
  expect(world.refusals.get(50)?.message).toMatch(
    /^no placement meets the targets: the best would have TTFT 2\d\d\d ms of 2500/,
  );
  expect(world.refusals.get(50)?.retryAfterMs).toBeGreaterThan(2_000);
  world.arrive(51, "a", within(2_500, true));
  world.arrive(52, "b", within(800));
  world.arrive(53, "a");
  const early = [...world.refusals.keys()];
  expect(early.every((key) => key >= 45 && key <= 50)).toBe(true);
  for (let turn = 6; world.state.queuedCount > 0; turn++) {
    world.nowMs += 100;
    world.compute(world.placed[turn] as number);
  }
  // 52 is of a tenant that was served nothing. Those without a target are given ten seconds; 51 goes after all that are no best effort.
  expect(world.placed.indexOf(52)).toBeLessThan(10);
  expect(world.placed.slice(-2)).toEqual([53, 51]);
  expect(world.decisions.get(51)).toMatchObject({ isBestEffort: true, serviceClass: "flex" });
  expect(world.decisions.get(53)).toMatchObject({ isBestEffort: false, serviceClass: "default" });
});

test("who waits for room as long as its first token may take is refused then, though nothing is known of the pace", () => {
  const world = new World(1, {}, 5);
  world.arrive(1, "a");
  world.arrive(2, "a", { objectives: { ttftMs: 300, mayBeLate: false } });
  world.nowMs = 299;
  world.apply({ kind: "Ticked" });
  expect(world.refusals.size).toBe(0);
  world.nowMs = 300;
  world.apply({ kind: "Ticked" });
  expect(world.refusals.get(2)).toMatchObject({ code: "slo_unattainable" });
  expect(world.state.queuedCount).toBe(0);
});

test("a full queue makes the tenant that fills it give way to another", () => {
  const world = new World(1, { queueMax: 4 });
  for (let key = 1; key <= 5; key++) world.arrive(key, "flood");
  world.arrive(6, "flood");
  expect(world.refusals.get(6)).toMatchObject({ code: "queue_full" });
  world.arrive(7, "quiet");
  expect(world.refusals.get(5)).toMatchObject({ code: "queue_full" });
  expect([world.state.queuedCount, world.refusals.size]).toEqual([4, 2]);
});

test("a weight of three is three times the share, and a priority request goes before others of all tenants until it is as much ahead", () => {
  const world = new World(1);
  for (let key = 1; key <= 80; key++) {
    world.arrive(key, key % 2 === 0 ? "big" : "small", { tenantWeight: key % 2 === 0 ? 3 : 1 });
  }
  world.arrive(81, "small", { serviceClass: "priority" });
  for (let turn = 0; turn < 40; turn++) {
    world.nowMs += 100;
    world.compute(world.placed[turn] as number);
  }
  expect(world.placed[1]).toBe(81);
  const big = world.placed.slice(2, 42).filter((key) => key % 2 === 0).length;
  expect(big).toBeGreaterThanOrEqual(29);
  expect(big).toBeLessThanOrEqual(32);
});

test("cancelled while it waits, a request leaves nothing; its tenant is not charged", () => {
  const world = new World(1);
  world.arrive(1, "a");
  world.arrive(2, "b");
  const before = world.state.sharesOf("tiny").counter("b");
  world.apply({ kind: "RequestEnded", key: 2 as RequestKey });
  expect([world.state.queuedCount, world.state.sharesOf("tiny").counter("b")]).toEqual([0, before]);
  world.compute(1);
  expect(world.placed).toEqual([1]);
});

test("turns of a conversation go to one worker while it is as good as another", () => {
  const world = new World(3, { workerQueue: undefined } as unknown as Partial<RouterOptions>);
  const worker = (key: number) => candidateName((world.decisions.get(key) as PlacementDecision).candidates[0]);
  for (let key = 1; key <= 12; key++) {
    world.arrive(key, "a", { sessionId: key % 2 === 0 ? "even" : `odd ${key}` });
    world.compute(key);
    world.end(key, 5);
    world.nowMs += 1_000;
  }
  const even = [2, 4, 6, 8, 10, 12].map(worker);
  expect(new Set(even).size).toBe(1);
});

test("a request that lost its worker goes before those that wait, is not held back, and its tenant is charged once", () => {
  const world = new World(2);
  for (let key = 1; key <= 6; key++) world.arrive(key, "a");
  const charged = world.state.sharesOf("tiny").counter("a");
  world.nowMs = 10;
  world.apply({ kind: "RequestRetried", key: 1 as RequestKey, excludedWorkerIds: ["m1"] });
  expect(world.placed.slice(2)).toContain(1);
  expect(world.state.sharesOf("tiny").counter("a") - charged).toBeLessThan(2 * 100 + 40);
});

test("a worker that fails whatever it is given draws no more requests, though it always looks idle, until it has answered one", () => {
  const world = new World(3, { workerQueue: undefined } as unknown as Partial<RouterOptions>);
  const workerOf = (key: number) => candidateName((world.decisions.get(key) as PlacementDecision).candidates[0]);
  const failures: number[] = [];
  for (let key = 1; key <= 60; key++) {
    world.arrive(key, "a");
    world.nowMs += 20;
    if (workerOf(key) === "m1") {
      failures.push(key);
      world.apply({ kind: "RequestRetried", key: key as RequestKey, excludedWorkerIds: ["m1"] });
      expect(workerOf(key)).not.toBe("m1");
    }
    // The others are busy for a while; it never is.
    if (key % 10 === 0) for (let done = key - 9; done <= key; done++) world.compute(done);
  }
  expect(failures.length).toBeGreaterThanOrEqual(3);
  expect(failures.length).toBeLessThanOrEqual(5);
  world.nowMs += 10_000;
  for (let key = 61; key <= 63; key++) {
    world.arrive(key, "a");
    world.compute(key);
  }
  for (let key = 71; key <= 90; key++) world.arrive(key, "a");
  const later = Array.from({ length: 20 }, (_, index) => workerOf(71 + index));
  expect(later.filter((name) => name === "m1").length).toBeGreaterThan(3);
});

test("a tenant whose answers were always short and are long now is not let in beyond what the others' targets bear", () => {
  const stepCost = { fixedMs: 5, promptTokenMs: 0.05, attentionMs: 0, decodeMs: 1, contextTokenMs: 0 };
  const inTime = { maxTokens: 200, objectives: { tbtMs: 30, ttftMs: 60_000, mayBeLate: false } };
  const admitted = (isLiar: boolean): number => {
    const world = new World(1, {}, 1_000, stepCost);
    let key = 0;
    for (let i = 0; i < (isLiar ? 100 : 0); i++) {
      world.arrive(++key, "a", inTime);
      world.compute(key);
      world.nowMs += 10;
      world.end(key, 2);
    }
    expect(world.decisions.get(key)?.predictedOutputTokens ?? 2).toBeCloseTo(2, 0);
    // From here on nothing ends.
    const before = key;
    for (let i = 0; i < 200; i++) {
      world.arrive(++key, "a", inTime);
      world.nowMs += 20;
      if (world.decisions.has(key)) world.compute(key);
    }
    return [...world.decisions.keys()].filter((id) => id > before).length;
  };
  const honest = admitted(false);
  expect(honest).toBeGreaterThan(15);
  expect(honest).toBeLessThan(30);
  expect(admitted(true)).toBeLessThanOrEqual(honest + 3);
});
