import fc from "fast-check";
import { expect, test } from "vitest";
import { SERVICE_CLASSES, type ServiceClass } from "../admission/index.ts";
import type { RequestKey } from "./reservations.ts";
import type { RouterEffect, RouterEvent } from "./router-events.ts";
import { RouterState } from "./router-state.ts";
import { at, facts, load, request, routerOptions } from "./testing/world.ts";
import { decodeBlockCount, prefillBlockCount, type RequestShape } from "./worker-facts.ts";

const WORKER_IDS = ["p0", "p1", "d0", "d1", "m0"];
const BLOCK_COUNT = 11;

type Operation =
  | { readonly kind: "attach" | "detach" | "restart" | "report"; readonly worker: number; readonly free: number }
  | {
      readonly kind: "arrive";
      readonly prompt: number;
      readonly max: number;
      readonly tenant: string;
      readonly serviceClass: ServiceClass;
      readonly ttftMs: number | undefined;
      readonly mayBeLate: boolean;
    }
  | { readonly kind: "end" | "first_token" | "retry"; readonly request: number; readonly worker: number }
  | { readonly kind: "wait"; readonly ms: number };

const worker = fc.nat(WORKER_IDS.length - 1);
const operation: fc.Arbitrary<Operation> = fc.oneof(
  fc.record({
    kind: fc.constantFrom("attach", "detach", "restart", "report"),
    worker,
    free: fc.integer({ min: 0, max: 11 }),
  }),
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("arrive"),
      prompt: fc.integer({ min: 1, max: 300 }),
      max: fc.integer({ min: 1, max: 60 }),
      tenant: fc.constantFrom("a", "b"),
      serviceClass: fc.constantFrom(...SERVICE_CLASSES),
      ttftMs: fc.constantFrom(undefined, undefined, 150, 3_000),
      mayBeLate: fc.boolean(),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constantFrom("end", "first_token", "retry"), request: fc.nat(20), worker }),
  },
  fc.record({ kind: fc.constant("wait"), ms: fc.constantFrom(1, 100, 2_000, 6_000) }),
) as fc.Arbitrary<Operation>;

interface Placed {
  readonly shape: RequestShape;
  decode: string;
  prefill: string | undefined;
}

/** The shell and its callers, with a plain ledger of what each live request must hold. */
class World {
  readonly router = new RouterState(routerOptions({ queueMax: 3, workerQueue: { promptCount: 1, queueMaxMs: 50 } }));
  readonly streams = new Map<number, { streamId: number; epoch: number; sequence: number }>();
  readonly lastEpochs = new Map<number, number>();
  readonly waiting = new Map<RequestKey, RequestShape>();
  readonly placed = new Map<RequestKey, Placed>();
  readonly retried = new Set<RequestKey>();
  readonly ended: RequestKey[] = [];
  readonly trace: string[] = [];
  nowMs = 0;
  epochs = 0;
  streamIds = 0;
  keys = 0;

  run(operation: Operation): void {
    switch (operation.kind) {
      case "wait":
        this.nowMs += operation.ms;
        this.#apply({ kind: "Ticked" });
        break;
      case "attach":
      case "restart": {
        if (operation.kind === "restart" || !this.lastEpochs.has(operation.worker))
          this.lastEpochs.set(operation.worker, ++this.epochs);
        const stream = { streamId: ++this.streamIds, epoch: this.lastEpochs.get(operation.worker) ?? 0, sequence: 1 };
        this.streams.set(operation.worker, stream);
        this.#apply({ kind: "WorkerAttached", ...stream, facts: facts(WORKER_IDS[operation.worker] ?? "") });
        break;
      }
      case "report": {
        const stream = this.streams.get(operation.worker);
        if (!stream) return;
        stream.sequence++;
        this.#apply({ kind: "WorkerReported", ...stream, load: load({ freeBlockCount: operation.free }) });
        break;
      }
      case "detach": {
        const stream = this.streams.get(operation.worker);
        this.streams.delete(operation.worker);
        if (stream) this.#apply({ kind: "WorkerLeft", streamId: stream.streamId });
        break;
      }
      case "arrive": {
        const key = ++this.keys as RequestKey;
        const { prompt, max, tenant, serviceClass, ttftMs, mayBeLate } = operation;
        const objectives = ttftMs === undefined ? {} : { objectives: { ttftMs, mayBeLate } };
        const shape: RequestShape = { ...request(prompt, max), tenant, serviceClass, ...objectives };
        this.waiting.set(key, shape);
        this.#apply({ kind: "RequestArrived", key, request: shape });
        break;
      }
      default:
        this.#runRequest(operation.kind, operation.request, operation.worker);
    }
  }

  #runRequest(kind: "end" | "first_token" | "retry", index: number, workerIndex: number): void {
    const live = [...this.waiting.keys(), ...this.placed.keys()];
    const key = live[index % Math.max(1, live.length)];
    if (key === undefined) return;
    const placed = this.placed.get(key);
    switch (kind) {
      case "end":
        this.placed.delete(key);
        this.waiting.delete(key);
        this.#apply({ kind: "RequestEnded", key, outcome: { outputTokenCount: workerIndex * 10, tbtMs: 12 } });
        break;
      case "first_token":
        if (placed) placed.prefill = undefined;
        this.#apply({ kind: "FirstTokenArrived", key });
        break;
      case "retry":
        this.retried.add(key);
        if (placed) {
          this.placed.delete(key);
          this.waiting.set(key, placed.shape);
        }
        this.#apply({ kind: "RequestRetried", key, excludedWorkerIds: [WORKER_IDS[workerIndex] ?? ""] });
    }
  }

  #apply(event: RouterEvent): void {
    for (const effect of this.router.apply(event, at(this.nowMs))) this.#take(effect);
    this.router.checkInvariants();
    this.#checkLedger();
    // Nobody waits whose turn it is and who could be placed.
    const again = this.router.apply({ kind: "Ticked" }, at(this.nowMs));
    if (event.kind === "Ticked") expect(again.filter(({ kind }) => kind === "SendPlacement")).toEqual([]);
    for (const effect of again) this.#take(effect);
    this.#checkLedger();
  }

  #take(effect: RouterEffect): void {
    this.trace.push(JSON.stringify(effect, (name, value) => (name === "candidates" ? undefined : value)));
    switch (effect.kind) {
      case "SendPlacement": {
        const shape = this.waiting.get(effect.key);
        expect(shape, `${effect.key} is placed and did not wait`).toBeDefined();
        if (!shape) return;
        // Among a tenant's requests of one class without targets who comes first is served first, unless it could run nowhere at all.
        const isLike = (other: RequestShape | undefined): boolean =>
          other?.tenant === shape.tenant && other?.serviceClass === shape.serviceClass;
        const first = [...this.waiting].find(
          ([key, other]) =>
            key < effect.key && !this.retried.has(key) && isLike(other) && other.objectives === undefined,
        )?.[0];
        if (first !== undefined && shape.objectives === undefined && !this.retried.has(effect.key))
          expect(this.#couldRun(this.waiting.get(first)), `${effect.key} overtook ${first}`).toBe(false);
        this.waiting.delete(effect.key);
        const { decode, prefill } = effect.decision.candidates[0];
        const name = (w: { facts: { workerId: string }; epoch: number }) => `${w.facts.workerId}@${w.epoch}`;
        this.placed.set(effect.key, { shape, decode: name(decode), prefill: prefill && name(prefill) });
        break;
      }
      case "RejectRequest":
        expect(this.waiting.delete(effect.key), `${effect.key} is refused and did not wait`).toBe(true);
        break;
      case "RefuseWorker":
        for (const [index, stream] of this.streams) if (stream.streamId === effect.streamId) this.streams.delete(index);
    }
  }

  #couldRun(shape: RequestShape | undefined): boolean {
    if (shape === undefined || shape.promptTokenCount + shape.maxTokens > 320) return false;
    const roles = new Set(
      this.router
        .workers()
        .filter((w) => w.load && !w.isLost)
        .map((w) => w.facts.role),
    );
    return roles.has("mixed") || (roles.has("prefill") && roles.has("decode"));
  }

  #checkLedger(): void {
    expect(this.router.queuedCount).toBe(this.waiting.size);
    expect(this.router.placedCount).toBe(this.placed.size);
    const sums = new Map<string, number>();
    const add = (name: string, blocks: number) => sums.set(name, (sums.get(name) ?? 0) + blocks);
    for (const { shape, decode, prefill } of this.placed.values()) {
      add(decode, decodeBlockCount(shape, 32));
      if (prefill) add(prefill, prefillBlockCount(shape, 32));
    }
    for (const [index, epoch] of this.lastEpochs) {
      const blocks = this.router.reserved(WORKER_IDS[index] ?? "", epoch).blockCount;
      expect(blocks).toBe(sums.get(`${WORKER_IDS[index]}@${epoch}`) ?? 0);
      expect(blocks).toBeGreaterThanOrEqual(0);
      expect(blocks).toBeLessThanOrEqual(BLOCK_COUNT);
    }
  }
}

test("for any interleaving: promises are the sum over live requests, pools are never overrun, order is kept, nothing is lost", () => {
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 120 }), (operations) => {
      const start: Operation[] = WORKER_IDS.flatMap((_, index) => [
        { kind: "attach", worker: index, free: 11 },
        { kind: "report", worker: index, free: 11 },
      ]);
      const [world, twin] = [new World(), new World()];
      for (const each of [...start, ...operations]) {
        world.run(each);
        twin.run(each);
      }
      expect(twin.trace).toEqual(world.trace);
      for (const key of [...world.waiting.keys(), ...world.placed.keys()]) {
        world.router.apply({ kind: "RequestEnded", key }, at(world.nowMs));
        world.waiting.delete(key);
        world.placed.delete(key);
      }
      expect([world.router.queuedCount, world.router.placedCount]).toEqual([0, 0]);
      world.router.checkInvariants();
    }),
    { numRuns: 300 },
  );
});
