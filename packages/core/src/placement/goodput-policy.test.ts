import { expect, test } from "vitest";
import type { Candidate } from "./choose-placement.ts";
import type { AttachedWorker } from "./cluster-view.ts";
import { candidateName } from "./describe-placement.ts";
import { GoodputPolicy } from "./goodput-policy.ts";
import { assumedRates } from "./link-belief.ts";
import { PREDICTION_DEFAULTS } from "./predict.ts";
import { NOTHING_RESERVED, type RequestKey } from "./reservations.ts";
import { at, attached, request } from "./testing/world.ts";
import type { Objectives } from "./worker-facts.ts";

/** Steps of 10 ms, 1 ms for each token of a prompt. */
class World {
  readonly policy = new GoodputPolicy();
  readonly workers: readonly AttachedWorker[];
  kvBytesPerSecond = PREDICTION_DEFAULTS.kvBytesPerSecond;
  last: Candidate | undefined;
  #key = 0;

  constructor(...workers: AttachedWorker[]) {
    this.workers = workers;
  }

  /** Where a request goes, or why not; it counts from then on. */
  place(
    objectives: Partial<Objectives>,
    cached: Readonly<Record<string, number>> = {},
    tokens = 200,
    nowMs = 0,
  ): string {
    const shape = { ...request(tokens, 20), objectives: { mayBeLate: false, ...objectives } };
    const outcome = this.policy.choose({
      workers: this.workers,
      request: shape,
      waitedMs: 0,
      answer: { meanTokens: 20, quantileTokens: 20 },
      reservedOf: () => NOTHING_RESERVED,
      exclusionOf: () => "none",
      options: {
        ...{ ...PREDICTION_DEFAULTS, kvBytesPerSecond: this.kvBytesPerSecond },
        mayPrefillLocally: false,
        cachedTokensOf: ({ workerId }) => cached[workerId] ?? 0,
        kvRates: assumedRates(this.kvBytesPerSecond),
      },
      now: at(nowMs),
    });
    if (outcome.kind !== "placed") return outcome.kind;
    this.last = outcome.candidates[0];
    this.policy.placed(++this.#key as RequestKey, outcome.candidates[0], shape, at(nowMs));
    return candidateName(outcome.candidates[0]);
  }
}

test("a cache is followed as long as its owner's queue leaves time, then the prompt is computed elsewhere too", () => {
  const world = new World(attached("m0"), attached("m1"));
  // A link on which nothing is worth fetching.
  world.kvBytesPerSecond = 500;
  const cached = { m1: 160 };
  const places = Array.from({ length: 8 }, () => world.place({ ttftMs: 500 }, cached));
  expect(places.slice(0, 3)).toEqual(["m1", "m1", "m1"]);
  expect(places).toContain("m0");
});

test("what the owner of a cache has no time for is fetched by another one, unless computing it is quicker", () => {
  const world = new World(attached("m0"), attached("m1"));
  const cached = { m1: 160 };
  expect([world.place({ ttftMs: 500 }, cached), world.last?.fetch]).toEqual(["m1", undefined]);
  expect(world.place({ ttftMs: 500 }, cached)).toBe("m0");
  expect(world.last).toMatchObject({ uncachedTokenCount: 40, fetch: { tokenEnd: 160, tokenCount: 160 } });
  expect(world.last?.fetch?.holder.facts.workerId).toBe("m1");
  // 160 KB in 145 ms, where 160 tokens are computed in as many.
  world.kvBytesPerSecond = 1.1e6;
  world.place({ ttftMs: 500 }, { m1: 160 }, 200, 10_000);
  world.place({ ttftMs: 500 }, { m1: 160 }, 200, 10_000);
  expect(world.last?.fetch).toBeUndefined();
});

test("a hot prefix is copied to all who are needed for it, and computed once", () => {
  const world = new World(attached("m0"), attached("m1"), attached("m2"), attached("m3"));
  const cached: Record<string, number> = { m0: 160 };
  const places = new Map<string, number>();
  let computed = 0;
  for (let index = 0; index < 24; index++) {
    world.place({ ttftMs: 250 }, cached, 200, index * 12);
    const { decode = attached(""), uncachedTokenCount = 0 } = world.last ?? {};
    const { workerId } = decode.facts;
    places.set(workerId, (places.get(workerId) ?? 0) + 1);
    cached[workerId] = 160;
    computed += uncachedTokenCount;
  }
  expect([...places.keys()].sort()).toEqual(["m0", "m1", "m2", "m3"]);
  const counts = [...places.values()];
  expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(2);
  expect(computed).toBe(24 * 40);
});

test("without a cache a burst is spread over equal workers, though no report came in between", () => {
  const world = new World(attached("m0"), attached("m1"), attached("m2"), attached("m3"));
  const places = Array.from({ length: 8 }, () => world.place({ ttftMs: 2_000 }));
  for (const name of ["m0", "m1", "m2", "m3"]) expect(places.filter((place) => place === name)).toHaveLength(2);
});

test("a decode worker computes some of the prompts itself when the prefill worker's queue would cost the target", () => {
  const world = new World(attached("p0"), attached("d0"));
  const places = Array.from({ length: 2 }, () => world.place({ ttftMs: 300, tbtMs: 100 }));
  expect([...new Set(places)].sort()).toEqual(["d0", "p0 → d0"]);
});

test("a decode worker that has computed no prompt is believed to take what the prefill workers take", () => {
  const stepCost = { fixedMs: 10, promptTokenMs: 0.5, attentionMs: 0, decodeMs: 1, contextTokenMs: 0 };
  const world = new World(
    attached("p0", { stepCost }),
    attached("d0", { stepCost: { ...stepCost, promptTokenMs: 0 } }),
  );
  const places = Array.from({ length: 4 }, () => {
    const name = world.place({ ttftMs: 400, tbtMs: 100 });
    if (name === "d0") expect(world.last?.ttft.computeMs).toBeGreaterThanOrEqual(110);
    return name;
  });
  expect(places).toContain("d0");
});

test("what no worker can do in time is late; who may be late is placed all the same", () => {
  const world = new World(attached("m0"), attached("m1"));
  expect(world.place({ ttftMs: 100 })).toBe("late");
  expect(world.place({ tbtMs: 5 })).toBe("late");
  expect(world.place({ ttftMs: 100, mayBeLate: true })).toBe("m0");
  expect(world.place({ ttftMs: 1_000 })).toBe("m1");
});

test("a cluster that is believed to be too slow for everybody is tried now and then, and says so", () => {
  const world = new World(attached("m0"));
  // Its prompt is predicted to take twice its target; another would be hopeless.
  expect([0, 1_000, 1_900].map((ms) => world.place({ ttftMs: 100 }, {}, 200, ms))).toEqual(["late", "late", "late"]);
  expect(world.place({ ttftMs: 10 }, {}, 200, 2_500)).toBe("late");
  expect(world.place({ ttftMs: 100 }, {}, 200, 2_500)).toBe("m0");
  expect(world.last?.isTrial).toBe(true);
  expect(world.place({ ttftMs: 100 }, {}, 200, 2_600)).toBe("late");
});

test("a request does not go where it would cost a stricter neighbour its target", () => {
  const world = new World(attached("m0"), attached("m1", { decodeStepMs: 30 }));
  expect(world.place({ ttftMs: 2_000, tbtMs: 11 })).toBe("m0");
  // Its prompt would take m0's decodes over 11 ms.
  expect(world.place({ ttftMs: 2_000, tbtMs: 1_000 }, {}, 290)).toBe("m1");
});

test("of a large fleet a sample is looked at, and those with the prompt always", () => {
  const fleet = Array.from({ length: 300 }, (_, index) => attached(`m${index}`));
  const world = new World(...fleet);
  expect(world.place({ ttftMs: 500 }, { m271: 192 })).toBe("m271");
  const places = new Set(Array.from({ length: 200 }, () => world.place({ ttftMs: 5_000 })));
  expect(places.size).toBeGreaterThan(150);
});
