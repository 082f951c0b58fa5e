import fc from "fast-check";
import { expect, test } from "vitest";
import { type Instant, nanosFromMs } from "../time.ts";
import type { SequenceKind } from "./events.ts";
import { reused, World } from "./testing/world.ts";

function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

const operation = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({
      op: fc.constant("arrive" as const),
      kind: fc.constantFrom<SequenceKind>("local", "prefill", "decode"),
      prompt: fc.integer({ min: 1, max: 60 }),
      max: fc.integer({ min: 1, max: 30 }),
      waitMs: fc.constantFrom(5, 1e9),
      branches: fc.constantFrom(0, 0, 1, 3),
      known: fc.constantFrom(0, 0, 1, 5, 29),
      text: fc.nat(30),
    }),
  },
  { weight: 6, arbitrary: fc.record({ op: fc.constant("plan" as const) }) },
  { weight: 6, arbitrary: fc.record({ op: fc.constant("answer" as const) }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant("transfer" as const), pick: fc.nat(100) }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant("fetch" as const), pick: fc.nat(1_000) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("lose" as const), pick: fc.nat(100) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("close" as const), pick: fc.nat(100) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("wait" as const), ms: fc.integer({ min: 1, max: 4 }) }) },
);

test("whatever arrives, ends and is answered in whatever order: no block is lost or shared, and every admitted sequence finishes", () => {
  const ways = ["atAdmission", "later", "evicted", "fetched", "jumped"] as const;
  // One round in thirty has no hit after admission: another one has.
  for (let round = 0; round < 6 && (round === 0 || ways.some((way) => reused[way] === 0)); round++)
    fc.assert(
      fc.property(
        fc.record({
          blockCount: fc.integer({ min: 4, max: 24 }),
          blockSize: fc.constantFrom(2, 4, 16),
          tokenBudget: fc.oneof(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 5, max: 40 })),
          sequenceCountMax: fc.integer({ min: 1, max: 6 }),
          seed: fc.nat(),
        }),
        fc.array(operation, { minLength: 10, maxLength: 120, size: "max" }),
        (options, operations) => {
          const world = new World(options.blockCount, options.blockSize, options.tokenBudget, options.sequenceCountMax);
          const random = generator(options.seed);
          for (const entry of operations) {
            if (entry.op === "arrive") {
              world.arrive(entry.kind, entry.prompt, entry.max, entry.waitMs, entry.branches, entry.known, entry.text);
            } else if (entry.op === "lose") world.loseTransfer(entry.pick);
            else if (entry.op === "fetch") world.fetch(entry.pick);
            else if (entry.op === "plan") world.plan();
            else if (entry.op === "answer") world.answer(random);
            else if (entry.op === "transfer") world.moveTransfer(entry.pick);
            else if (entry.op === "close") world.close(entry.pick);
            else {
              world.now = (world.now + nanosFromMs(entry.ms)) as Instant;
              world.apply({ kind: "TimePassed" });
            }
          }
          world.settle(random);
          // First come, first admitted.
          const admitted = new Set(world.admissions);
          expect(world.admissions).toEqual(world.arrivals.filter((id) => admitted.has(id)));
          // Everything ended, once, for a reason.
          expect([...world.live]).toEqual([]);
          for (const [id, spec] of world.specs) {
            const tokens = world.delivered.get(id) ?? [];
            const isClosed = world.closed.has(id) || world.closed.has(world.parents.get(id) ?? id);
            if (isClosed || world.refused.has(id)) continue;
            if (spec.kind === "prefill") expect(tokens.length).toBe(1);
            else if (spec.kind !== "decode" || spec.maxTokens > 1) expect(world.ended.get(id)).toBeDefined();
          }
          expect(world.scheduler.pool.freeCount).toBe(options.blockCount);
          expect(world.scheduler.pool.reservedCount).toBe(0);
          expect(world.device.known.size).toBe(0);
          reused.evicted += world.scheduler.pool.evictedCount;
        },
      ),
      { numRuns: 150 },
    );
  for (const way of ways) expect(reused[way], way).toBeGreaterThan(0);
});
