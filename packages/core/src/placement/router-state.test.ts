import { expect, test } from "vitest";
import { candidateName } from "./describe-placement.ts";
import type { RequestKey } from "./reservations.ts";
import type { RouterEffect, RouterEvent } from "./router-events.ts";
import { type RouterOptions, RouterState } from "./router-state.ts";
import { at, facts, load, request, routerOptions } from "./testing/world.ts";
import type { ReportedLoad, WorkerFacts } from "./worker-facts.ts";

const key = (value: number) => value as RequestKey;

/** A router whose every answer is one short line. */
class Router {
  readonly state: RouterState;
  nowMs = 0;
  #streamId = 0;
  readonly #sequences = new Map<number, number>();

  constructor(extra: Partial<RouterOptions> = {}) {
    this.state = new RouterState(routerOptions(extra));
  }

  apply(event: RouterEvent): readonly string[] {
    const effects = this.state.apply(event, at(this.nowMs));
    this.state.checkInvariants();
    return effects.filter((effect) => effect.kind !== "AcknowledgeWorker").map(line);
  }

  attach(workerId: string, epoch = 1, extraFacts: Partial<WorkerFacts> = {}): number {
    const streamId = ++this.#streamId;
    this.apply({ kind: "WorkerAttached", streamId, epoch, sequence: 1, facts: facts(workerId, extraFacts) });
    this.#sequences.set(streamId, 1);
    return streamId;
  }

  report(streamId: number, extraLoad: Partial<ReportedLoad> = {}, epoch = 1): readonly string[] {
    const sequence = (this.#sequences.get(streamId) ?? 0) + 1;
    this.#sequences.set(streamId, sequence);
    return this.apply({ kind: "WorkerReported", streamId, epoch, sequence, load: load(extraLoad) });
  }

  up(workerId: string, epoch = 1, extraFacts: Partial<WorkerFacts> = {}): number {
    const streamId = this.attach(workerId, epoch, extraFacts);
    this.report(streamId, {}, epoch);
    return streamId;
  }

  leave(streamId: number): readonly string[] {
    return this.apply({ kind: "WorkerLeft", streamId });
  }

  arrive(id: number, promptTokenCount: number, maxTokens: number, model = "tiny"): readonly string[] {
    return this.apply({ kind: "RequestArrived", key: key(id), request: request(promptTokenCount, maxTokens, model) });
  }

  retry(id: number, ...excludedWorkerIds: string[]): readonly string[] {
    return this.apply({ kind: "RequestRetried", key: key(id), excludedWorkerIds });
  }

  firstToken(id: number): readonly string[] {
    return this.apply({ kind: "FirstTokenArrived", key: key(id) });
  }

  end(id: number): readonly string[] {
    return this.apply({ kind: "RequestEnded", key: key(id) });
  }

  tick(nowMs: number): readonly string[] {
    this.nowMs = nowMs;
    return this.apply({ kind: "Ticked" });
  }
}

function line(effect: RouterEffect): string {
  switch (effect.kind) {
    case "SendPlacement":
      return `${effect.key} on ${candidateName(effect.decision.candidates[0])}`;
    case "SendQueued":
      return `${effect.key} waits behind ${effect.position}`;
    case "RejectRequest":
      return `${effect.key} ${effect.reason} ${effect.retryAfterMs}: ${effect.message}`;
    case "ReportLostWorker":
      return `lost ${effect.workerId}`;
    case "RefuseWorker":
      return `refuse ${effect.streamId}: ${effect.message}`;
    case "AcknowledgeWorker":
      return `ack ${effect.sequence}`;
    case "WantCacheSnapshot":
      return `snapshot ${effect.streamId}`;
  }
}

test("promises count from placement to the end, and prompts to the first token", () => {
  const router = new Router();
  router.up("p0");
  router.up("d0");
  expect(router.arrive(1, 90, 38)).toEqual(["1 on p0 → d0"]);
  expect(router.state.reserved("p0", 1)).toMatchObject({ blockCount: 3, promptTokenCount: 90, sequenceCount: 0 });
  expect(router.state.reserved("d0", 1)).toMatchObject({ blockCount: 4, promptTokenCount: 0, sequenceCount: 1 });
  router.firstToken(1);
  router.firstToken(1);
  expect(router.state.reserved("p0", 1)).toMatchObject({ blockCount: 0, promptTokenCount: 0 });
  expect(router.state.reserved("d0", 1)).toMatchObject({ blockCount: 4 });
  router.end(1);
  router.end(1);
  expect(router.state.reserved("d0", 1)).toMatchObject({ blockCount: 0, sequenceCount: 0 });
  expect(router.state.placedCount).toBe(0);
});

test("a burst between two reports spreads by what was promised", () => {
  const router = new Router();
  router.up("m0");
  router.up("m1");
  expect([1, 2, 3, 4].flatMap((id) => router.arrive(id, 64, 32))).toEqual(["1 on m0", "2 on m1", "3 on m0", "4 on m1"]);
});

test("who comes first is placed first, also when a later one would fit", () => {
  const router = new Router();
  const worker = router.up("m0");
  expect(router.arrive(1, 200, 88)).toEqual(["1 on m0"]); // 9 of 11 blocks.
  expect(router.arrive(2, 100, 28)).toEqual(["2 waits behind 0"]);
  expect(router.arrive(3, 10, 10)).toEqual(["3 waits behind 1"]);
  expect(router.report(worker, { freeBlockCount: 2 })).toEqual([]);
  expect(router.end(1)).toEqual(["2 on m0", "3 on m0"]);
});

test("use that this router did not promise stands until the worker reports otherwise", () => {
  const router = new Router();
  const worker = router.up("m0");
  router.report(worker, { freeBlockCount: 2 });
  expect(router.arrive(1, 100, 28)).toEqual(["1 waits behind 0"]);
  expect(router.report(worker, { freeBlockCount: 3 })).toEqual([]);
  expect(router.report(worker, { freeBlockCount: 4 })).toEqual(["1 on m0"]);
});

test("one model's shortage does not hold up another", () => {
  const router = new Router();
  router.up("m0");
  router.up("m1", 1, { model: "big" });
  router.arrive(1, 300, 20);
  expect(router.arrive(2, 300, 20)).toEqual(["2 waits behind 0"]);
  expect(router.arrive(3, 300, 20, "big")).toEqual(["3 on m1"]);
});

test("positions are sent as the queue moves, at most once a second", () => {
  const router = new Router();
  router.up("m0");
  for (const id of [1, 2, 3, 4]) router.arrive(id, 300, 20);
  router.end(2);
  expect(router.tick(999)).toEqual([]);
  expect(router.tick(1_000)).toEqual(["3 waits behind 0", "4 waits behind 1"]);
  expect(router.tick(2_000)).toEqual([]);
});

test("a full queue refuses at once, with a time to come back", () => {
  const router = new Router({ queueMax: 2 });
  router.up("m0");
  for (const id of [1, 2, 3]) router.arrive(id, 300, 20);
  expect(router.arrive(4, 300, 20)).toEqual(["4 overloaded 2000: 2 requests wait already, the most that may"]);
  expect(router.state.queuedCount).toBe(2);
});

test("with no queue at all, what fits is placed and the rest is refused", () => {
  const router = new Router({ queueMax: 0 });
  router.up("m0");
  expect(router.arrive(1, 300, 20)).toEqual(["1 on m0"]);
  expect(router.arrive(2, 300, 20)).toEqual(["2 overloaded 100: 0 requests wait already, the most that may"]);
});

test("a wait ends in overloaded at its limit, and the next in line moves up", () => {
  const router = new Router();
  const worker = router.up("m0");
  router.arrive(1, 200, 56);
  router.arrive(2, 300, 20);
  router.nowMs = 10;
  router.arrive(3, 32, 32);
  const keepAlive = (nowMs: number) => {
    router.nowMs = nowMs;
    router.report(worker, { freeBlockCount: 3 });
  };
  for (let nowMs = 1_000; nowMs < 30_000; nowMs += 1_000) keepAlive(nowMs);
  router.tick(29_999);
  expect(router.tick(30_000)).toEqual([
    "2 overloaded 1000: waited 30000 ms for room; all workers are full: the request needs 10 blocks on a mixed worker (free: m0 3)",
    "3 on m0",
  ]);
});

test("while no capable worker is attached a request waits for the grace, then it is unavailable", () => {
  const router = new Router();
  expect(router.arrive(1, 10, 10)).toEqual(["1 waits behind 0"]);
  router.tick(4_999);
  expect(router.tick(5_000)).toEqual([
    '1 unavailable 5000: model "tiny" has no live worker attached; waited 5000 ms for one',
  ]);
  router.arrive(2, 10, 10);
  router.tick(9_000);
  const worker = router.attach("m0");
  expect(router.report(worker)).toEqual(["2 on m0"]);
});

test("a request that can never fit, or names no served model, is invalid at once", () => {
  const router = new Router();
  router.up("m0");
  expect(router.arrive(1, 10, 10, "huge")).toEqual(['1 invalid_request 0: model "huge" is not served here; use tiny']);
  expect(router.arrive(2, 320, 1)).toEqual(["2 invalid_request 0: the prompt has 320 tokens; the context holds 320"]);
});

test("a model whose only worker left a moment ago is waited for, not called unknown", () => {
  const router = new Router();
  router.up("m0");
  const big = router.up("m1", 1, { model: "big" });
  router.leave(big);
  expect(router.arrive(1, 10, 10, "big")).toEqual(["1 waits behind 0"]);
  router.tick(5_000);
  expect(router.arrive(2, 10, 10, "big")).toEqual(['2 invalid_request 0: model "big" is not served here; use tiny']);
});

test("a retry passes a full queue and waits for another worker, before others that came later", () => {
  const router = new Router({ queueMax: 1 });
  router.up("m0");
  router.up("m1");
  router.arrive(1, 300, 20);
  router.arrive(2, 300, 20);
  expect(router.arrive(3, 310, 10)).toEqual(["3 waits behind 0"]);
  // The worker that failed has room now, which the one behind gets.
  expect(router.retry(1, "m0")).toEqual(["3 on m0", "1 waits behind 0"]);
  expect(router.end(2)).toEqual(["1 on m1"]);
});

test("the only worker is used again once it has shown life since it failed", () => {
  const router = new Router();
  const worker = router.up("m0");
  router.arrive(1, 10, 10);
  router.nowMs = 50;
  expect(router.retry(1, "m0")).toEqual(["1 waits behind 0"]);
  router.nowMs = 60;
  expect(router.report(worker)).toEqual(["1 on m0"]);
});

test("a request that failed on a killed worker is placed on its next incarnation", () => {
  const router = new Router();
  router.up("p0");
  const decode = router.up("d0", 7);
  expect(router.arrive(1, 100, 20)).toEqual(["1 on p0 → d0"]);
  router.nowMs = 10;
  router.retry(1, "d0");
  router.nowMs = 20;
  router.leave(decode);
  router.tick(3_000);
  const again = router.attach("d0", 8);
  expect(router.report(again, {}, 8)).toEqual(["1 on p0 → d0"]);
  expect(router.state.reserved("d0", 7).blockCount).toBe(0);
  expect(router.state.reserved("d0", 8).blockCount).toBe(4);
});

test("a silent worker is left out, and counted in again when it reports", () => {
  const router = new Router();
  const worker = router.up("m0");
  expect(router.tick(5_000)).toEqual(["lost m0"]);
  expect(router.arrive(1, 10, 10)).toEqual(["1 waits behind 0"]);
  router.nowMs = 6_000;
  expect(router.report(worker)).toEqual(["1 on m0"]);
});

test("a worker that reattaches in its incarnation still holds what it was promised", () => {
  const router = new Router();
  const first = router.up("m0");
  router.arrive(1, 300, 20);
  router.leave(first);
  router.up("m0");
  expect(router.arrive(2, 10, 10)).toEqual(["2 on m0"]);
  expect(router.arrive(3, 10, 10)).toEqual(["3 waits behind 0"]);
  router.leave(3);
  router.up("m0", 2);
  expect(router.state.reserved("m0", 2).blockCount).toBe(1);
});

test("cancelling in the queue, and messages after a refusal, leave nothing behind", () => {
  const router = new Router();
  router.arrive(1, 10, 10);
  router.end(1);
  expect(router.state.queuedCount).toBe(0);
  expect(router.retry(1, "m0")).toEqual([]);
  expect(router.firstToken(1)).toEqual([]);
  router.up("m0");
  expect(router.state.placedCount).toBe(0);
});

test("what cannot meet its targets is refused at once, with when to come back; others are not held up", () => {
  const world = new Router();
  world.up("m0");
  const late = { ...request(200, 20), objectives: { ttftMs: 50, mayBeLate: false } };
  const [refusal] = world.apply({ kind: "RequestArrived", key: key(1), request: late });
  expect(refusal).toMatch(/overloaded \d+: no placement meets the targets: the best would have TTFT \d+ ms of 50/);
  expect(world.state.placedCount + world.state.queuedCount).toBe(0);
  expect(world.arrive(2, 100, 20)).toHaveLength(1);
  expect(world.state.placedCount).toBe(1);
});
