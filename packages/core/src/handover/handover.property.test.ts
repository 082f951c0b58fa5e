import fc from "fast-check";
import { expect, test } from "vitest";
import { World } from "./testing/world.ts";

const SCHEDULES = 100_000;

/**
 * Both sides together, over a transport that loses, repeats, delays, reorders and cuts, with workers that die and callers that leave. After
 * every event: what is pinned is under a lease that ends; what is reserved belongs to a transfer that lives; nothing is freed while a copy
 * touches it, or twice; what is verified is right; the client gets its first token once. And when the faults are over, all is over and free.
 */
test("no schedule of faults loses a block, frees one too early, or leaves a request without an end", () => {
  const outcomes = new Map<string, number>();
  fc.assert(
    fc.property(
      fc.record({
        promptTokenCount: fc.integer({ min: 1, max: 4 }),
        tailTokenMax: fc.integer({ min: 0, max: 4 }),
        hitTailTokenMax: fc.integer({ min: 0, max: 2 }),
        cachedTokenCount: fc.constantFrom(0, 0, 1, 2, 3),
        sourceCount: fc.integer({ min: 1, max: 2 }),
        isFinal: fc.integer({ min: 0, max: 7 }).map((value) => value === 0),
      }),
      fc.array(fc.nat(0xffff), { minLength: 10, maxLength: 60, size: "max" }),
      (options, schedule) => {
        const world = new World(options);
        for (const number of schedule) world.step(number);
        world.settle();
        const ends = world.receivers.map((receiver) => receiver.end ?? "lost");
        for (const end of [world.outcome ?? "none", ...ends]) outcomes.set(end, (outcomes.get(end) ?? 0) + 1);
      },
    ),
    { numRuns: SCHEDULES },
  );
  // The schedules reach every end of the machines.
  for (const end of ["joined", "tail", "localHit", "finished", "failed", "lost", "answered", "cancelled"]) {
    expect(outcomes.get(end) ?? 0, end).toBeGreaterThan(SCHEDULES / 1_000);
  }
}, 180_000);
