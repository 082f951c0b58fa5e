import { expect, test } from "vitest";
import type { AttachedWorker } from "./cluster-view.ts";
import { candidateName } from "./describe-placement.ts";
import { GoodputPolicy } from "./goodput-policy.ts";
import { PREDICTION_DEFAULTS } from "./predict.ts";
import { NOTHING_RESERVED, type RequestKey } from "./reservations.ts";
import { at, attached, request } from "./testing/world.ts";
import type { Objectives } from "./worker-facts.ts";

/** Steps of 10 ms, 1 ms for each token of a prompt. */
class World {
  readonly policy = new GoodputPolicy();
  readonly workers: readonly AttachedWorker[];
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
        ...PREDICTION_DEFAULTS,
        mayPrefillLocally: false,
        cachedTokensOf: ({ workerId }) => cached[workerId] ?? 0,
      },
      now: at(nowMs),
    });
    if (outcome.kind !== "placed") return outcome.kind;
    this.policy.placed(++this.#key as RequestKey, outcome.candidates[0], shape, at(nowMs));
    return candidateName(outcome.candidates[0]);
  }
}

test("a cache is followed as long as its owner's queue leaves time, then the prompt is computed elsewhere too", () => {
  const world = new World(attached("m0"), attached("m1"));
  const cached = { m1: 160 };
  const places = Array.from({ length: 8 }, () => world.place({ ttftMs: 500 }, cached));
  expect(places.slice(0, 3)).toEqual(["m1", "m1", "m1"]);
  expect(places).toContain("m0");
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

test("what no worker can do in time is late; who may be late is placed all the same", () => {
  const world = new World(attached("m0"), attached("m1"));
  expect(world.place({ ttftMs: 100 })).toBe("late");
  expect(world.place({ tbtMs: 5 })).toBe("late");
  expect(world.place({ ttftMs: 100, mayBeLate: true })).toBe("m0");
  expect(world.place({ ttftMs: 1_000 })).toBe("m1");
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
