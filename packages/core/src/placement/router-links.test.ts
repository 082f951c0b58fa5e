import { expect, test } from "vitest";
import type { KvAccuracy } from "../codec-level/index.ts";
import { candidateName } from "./describe-placement.ts";
import type { RequestKey } from "./reservations.ts";
import type { PlacementDecision, RouterEvent } from "./router-events.ts";
import { RouterState } from "./router-state.ts";
import { at, facts, load, request, routerOptions } from "./testing/world.ts";
import type { ReportedLoad, RequestShape } from "./worker-facts.ts";

const PROMPT_TOKENS = 250;
/** Of its seven full blocks. */
const HELD_TOKENS = 224;
const HASHES = Uint8Array.from({ length: 7 * 16 }, (_, index) => index);
/** Exact and fast KV, in bytes a second. */
type Rates = readonly [number, number];

/** A router that assumes 500 MB/s of links; 1 KB of KV and 1 ms of computing for each token. */
class World {
  readonly state = new RouterState(routerOptions());
  nowMs = 0;
  readonly #streams = new Map<string, { readonly streamId: number; sequence: number }>();
  #key = 0;

  up(workerId: string, extraLoad: Partial<ReportedLoad> = {}): this {
    const stream = { streamId: this.#streams.size + 1, sequence: 1 };
    this.#streams.set(workerId, stream);
    const transferAddress = `${workerId}:9`;
    this.#apply({ kind: "WorkerAttached", ...stream, epoch: 1, facts: facts(workerId, { transferAddress }) });
    return this.report(workerId, extraLoad);
  }

  report(
    workerId: string,
    extraLoad: Partial<ReportedLoad> = {},
    measured: Readonly<Record<string, Rates>> = {},
  ): this {
    const links = Object.entries(measured).map(([source, [exact, fast]]) => ({
      source: `${source}:9`,
      measuredAt: at(this.nowMs),
      rates: { exact: exact / 1e3, near: exact / 1e3, fast: fast / 1e3 },
    }));
    this.#apply({ kind: "WorkerReported", ...this.#next(workerId), load: load(extraLoad), links });
    return this;
  }

  /** It has all full blocks of the prompt. */
  holds(workerId: string): this {
    const change = { kind: "SnapshotPart", epoch: 1, sequence: 1, medium: "device", part: 0, isLast: true } as const;
    this.#apply({ kind: "WorkerCacheChanged", ...this.#next(workerId), change: { ...change, hashes: HASHES } });
    return this;
  }

  /** What is decided of the prompt; it has its first token after so long, and ends. */
  decide(kvAccuracy: KvAccuracy = "exact", extra: Partial<RequestShape> = {}, firstTokenMs = 0): PlacementDecision {
    const key = ++this.#key as RequestKey;
    const promptHashes = [{ fingerprint: "aa".repeat(16), blockSize: 32, hashes: HASHES }];
    const shape = { ...request(PROMPT_TOKENS, 20), promptHashes, kvAccuracy, ...extra };
    const [effect] = this.#apply({ kind: "RequestArrived", key, request: shape });
    if (effect?.kind !== "SendPlacement") throw new Error(JSON.stringify(effect));
    this.nowMs += firstTokenMs;
    this.#apply({ kind: "FirstTokenArrived", key });
    this.#apply({ kind: "RequestEnded", key });
    return effect.decision;
  }

  #next(workerId: string) {
    const stream = this.#streams.get(workerId);
    if (stream === undefined) throw new Error(`${workerId} is not attached`);
    return { streamId: stream.streamId, epoch: 1, sequence: ++stream.sequence };
  }

  #apply(event: RouterEvent) {
    const effects = this.state.apply(event, at(this.nowMs));
    this.state.checkInvariants();
    return effects;
  }
}

const targets = { objectives: { ttftMs: 2_000, tbtMs: 100, mayBeLate: true } };
const BUSY = { queuedPromptTokenCount: 2_000, waitingCount: 2 };

for (const [name, extra] of [
  ["without targets", {}],
  ["with targets", targets],
] as const) {
  test(`${name}: over a link that was measured to be slow an exact prompt is computed, and one that allows fast KV is fetched`, () => {
    const world = new World().up("m1", BUSY).holds("m1").up("m2");
    const fetched = world.decide("exact", extra);
    expect(fetched.candidates[0]).toMatchObject({
      decode: { facts: { workerId: "m2" } },
      fetch: { tokenEnd: HELD_TOKENS },
    });
    expect(fetched.reason).toContain("2.4 ms at 500 MB/s, assumed, computing 224 ms");

    world.report("m2", {}, { m1: [0.5e6, 4e6] });
    const exact = world.decide("exact", extra);
    expect(exact.candidates[0]).toMatchObject({
      decode: { facts: { workerId: "m2" } },
      uncachedTokenCount: PROMPT_TOKENS,
    });
    expect(exact.reason).toContain("fetching 450 ms at 500 kB/s, measured 0 s ago;");
    const fast = world.decide("fast", extra);
    expect(fast.candidates[0]).toMatchObject({
      fetch: { tokenEnd: HELD_TOKENS, rate: { accuracy: "fast", ageMs: 0 } },
    });
    expect(fast.reason).toContain("58 ms at 4 MB/s, measured 0 s ago, fast KV, computing");
  });
}

test("a link is tried again once its measurement is old, and is like any other when its worker has come anew", () => {
  const world = new World().up("m1", BUSY).holds("m1").up("m2");
  world.report("m2", {}, { m1: [0.5e6, 0.5e6] });
  expect(world.decide().candidates[0]?.fetch).toBeUndefined();
  world.nowMs = 300_000;
  world.report("m1", BUSY).report("m2");
  expect(world.decide().candidates[0]).toMatchObject({ fetch: { rate: { ageMs: 300_000 } } });
  world.report("m2", {}, { m1: [0.5e6, 0.5e6] });
  expect(world.decide().candidates[0]?.fetch).toBeUndefined();
  world.up("m2");
  expect(world.decide().candidates[0]).toMatchObject({ fetch: { rate: { ageMs: undefined } } });
});

test("another holder lends where the link to the idlest one is slow", () => {
  const world = new World()
    .up("m1", BUSY)
    .holds("m1")
    .up("m3", { ...BUSY, waitingCount: 3 })
    .holds("m3")
    .up("m2");
  const lender = () => world.decide().candidates[0]?.fetch?.holder.facts.workerId;
  expect(lender()).toBe("m1");
  world.report("m2", {}, { m1: [0.5e6, 0.5e6] });
  expect(lender()).toBe("m3");
});

test("a prompt is decoded where its KV comes quickly, or computed there, rather than where most is free", () => {
  const world = new World().up("p1").up("d1").up("d2", { freeBlockCount: 10 });
  const where = (extra: Partial<RequestShape> = {}) => {
    const [best] = world.decide("exact", { ...extra, promptHashes: [] }).candidates;
    return [candidateName(best), best.handOver?.rate.ageMs === undefined ? "assumed" : "measured"];
  };
  expect(where()).toEqual(["p1 → d1", "assumed"]);
  world.report("d1", {}, { p1: [0.1e6, 0.1e6] });
  expect(where()).toEqual(["p1 → d2", "assumed"]);
  world.report("d2", { freeBlockCount: 10 }, { p1: [0.2e6, 0.2e6] });
  expect(where()).toEqual(["p1 → d2", "measured"]);
  // The hand-over would take a second and more, spread over the gaps of 19 tokens; computing the prompt beside decodes takes a quarter of one.
  const { reason, candidates } = world.decide("exact", { ...targets, promptHashes: [] });
  expect([candidates[0].mode, reason]).toEqual(["aggregated", expect.stringContaining("computes the prompt as well")]);
});

test("with targets another decode worker is taken where KV comes slowly to the one with the shortest gaps", () => {
  const world = new World().up("p1").up("d1").up("d2", { decodeStepMs: 11 });
  // Where decodes have no time for prompts.
  const strict = { objectives: { ttftMs: 5_000, tbtMs: 14, mayBeLate: true }, promptHashes: [] };
  expect(candidateName(world.decide("exact", strict).candidates[0])).toBe("p1 → d1");
  world.report("d1", {}, { p1: [0.1e6, 100e6] });
  expect(candidateName(world.decide("exact", strict).candidates[0])).toBe("p1 → d2");
  expect(candidateName(world.decide("fast", strict).candidates[0])).toBe("p1 → d1");
});

test("KV that comes as late as a target allows, for it is more exact then, tells nothing of its worker", () => {
  const world = new World().up("m1", BUSY).holds("m1").up("m2");
  const computeMs = (kvAccuracy: KvAccuracy) => world.decide(kvAccuracy, targets, 400).candidates[0].ttft.computeMs;
  const [first, second, third] = [computeMs("fast"), computeMs("fast"), computeMs("fast")];
  expect([second, third]).toEqual([first, first]);
  const [exact, later] = [computeMs("exact"), computeMs("exact")];
  expect(later).toBeGreaterThan(exact);

  // One that says that its links are quick answers for its own late first tokens all the same.
  world.report("m2", {}, { m1: [5e9, 5e9] });
  const [quick, slower] = [computeMs("exact"), computeMs("exact")];
  expect(slower).toBeGreaterThan(quick);
});
