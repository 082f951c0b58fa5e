import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Instant } from "../time.ts";
import type { EvictionPolicy } from "./eviction-policy.ts";
import { LruPolicy } from "./lru-policy.ts";
import { S3FifoPolicy } from "./s3-fifo-policy.ts";
import { ScoreQueue } from "./score-queue.ts";
import { ScoredPolicy } from "./scored-policy.ts";
import { UseSketch } from "./use-sketch.ts";

const at = (seconds: number) => (seconds * 1e9) as Instant;
const facts = (keyBits: number, position = 0, worth = 1) => ({ keyBits, position, worth });

const POLICIES: Readonly<Record<string, (slotCount: number) => EvictionPolicy>> = {
  lru: (slotCount) => new LruPolicy(slotCount),
  "s3-fifo": (slotCount) => new S3FifoPolicy(slotCount),
  scored: (slotCount) => new ScoredPolicy(slotCount, {}, new UseSketch(256)),
};

describe.each(Object.entries(POLICIES))("%s", (_name, policyOf) => {
  test("every slot that came leaves once, and nothing else does", () => {
    const operation = fc.record({ kind: fc.constantFrom("use", "use", "evict", "remove"), slot: fc.nat(11) });
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 200 }), (operations) => {
        const policy = policyOf(12);
        const held = new Set<number>();
        operations.forEach(({ kind, slot }, index) => {
          if (kind === "use") {
            if (held.has(slot)) policy.touch(slot, facts(slot), at(index));
            else policy.insert(slot, facts(slot), at(index));
            held.add(slot);
          } else if (kind === "remove") {
            policy.remove(slot);
            held.delete(slot);
          } else {
            const evicted = policy.evict();
            expect(evicted === undefined ? held.size === 0 : held.delete(evicted)).toBe(true);
          }
          expect(policy.size).toBe(held.size);
        });
      }),
    );
  });
});

test("LRU evicts what was not used for the longest time", () => {
  const policy = new LruPolicy(3);
  for (const slot of [0, 1, 2]) policy.insert(slot, facts(slot));
  policy.touch(0);
  expect([policy.evict(), policy.evict(), policy.evict(), policy.evict()]).toEqual([1, 2, 0, undefined]);
});

test("S3-FIFO: one scan passes through the small queue, ghosts return to the main one", () => {
  const policy = new S3FifoPolicy(10);
  for (let slot = 0; slot < 10; slot++) policy.insert(slot, facts(slot));
  for (const slot of [0, 0, 1]) policy.touch(slot);
  // Slot 0 was used twice and goes on; slot 1 was used once and leaves.
  expect(policy.evict()).toBe(1);
  policy.insert(1, facts(1));
  expect([2, 3, 4, 5, 6, 7, 8, 9].map(() => policy.evict())).toEqual([2, 3, 4, 5, 6, 7, 8, 9]);
  expect([policy.evict(), policy.evict()]).toEqual([0, 1]);
});

describe("scored", () => {
  const options = { creditSecondsPerDoubling: 100, secondsPerToken: 0.01 };

  test("a doubling of uses outlives one credit of idling, not more", () => {
    const policy = new ScoredPolicy(4, options);
    policy.insert(0, facts(70), at(0));
    policy.touch(0, facts(70), at(0));
    policy.insert(1, facts(71), at(99));
    policy.insert(2, facts(72), at(101));
    expect([policy.evict(), policy.evict(), policy.evict()]).toEqual([1, 0, 2]);
  });

  test("of one text the end leaves first", () => {
    const policy = new ScoredPolicy(3, options);
    [0, 1, 2].forEach((slot) => {
      policy.insert(slot, facts(slot, slot * 512), at(5));
    });
    expect([policy.evict(), policy.evict(), policy.evict()]).toEqual([2, 1, 0]);
  });

  test("what comes back is known, and what is dear to compute stays longer", () => {
    const uses = new UseSketch(256);
    const policy = new ScoredPolicy(3, options, uses);
    policy.insert(0, facts(70), at(0));
    expect(policy.evict()).toBe(0);
    expect(uses.count(70)).toBe(1);
    policy.insert(0, facts(70), at(10));
    policy.insert(1, facts(71), at(50));
    policy.insert(2, facts(72, 0, 4), at(20));
    expect([policy.evict(), policy.evict(), policy.evict()]).toEqual([1, 0, 2]);
  });

  test("a slot that had to stay comes back without a use", () => {
    const uses = new UseSketch(256);
    const policy = new ScoredPolicy(2, options, uses);
    policy.insert(0, facts(70), at(0));
    policy.remove(0);
    expect(policy.evict()).toBeUndefined();
    policy.restore(0, facts(70), at(3));
    expect(uses.count(70)).toBe(1);
    expect(policy.evict()).toBe(0);
  });
});

test("the queue gives slots by score, whatever happened before", () => {
  const operation = fc.record({
    slot: fc.nat(19),
    score: fc.option(fc.integer({ min: -5, max: 5 }), { nil: undefined }),
  });
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 100 }), (operations) => {
      const queue = new ScoreQueue(20);
      const model = new Map<number, number>();
      for (const { slot, score } of operations) {
        if (score === undefined) {
          queue.delete(slot);
          model.delete(slot);
        } else {
          queue.set(slot, score);
          model.set(slot, score);
        }
        queue.checkInvariants();
      }
      const expected = [...model].sort((a, b) => a[1] - b[1] || a[0] - b[0]).map(([slot]) => slot);
      const found: number[] = [];
      for (let slot = queue.first(); slot !== undefined; slot = queue.first()) {
        found.push(slot);
        queue.delete(slot);
      }
      expect(found).toEqual(expected);
    }),
  );
});

test("a sketch never counts too few, and is nearly always right for as many keys as it was made for", () => {
  const sketch = new UseSketch(4096);
  for (let key = 0; key < 1000; key++) for (let use = 0; use <= key % 5; use++) sketch.add(Math.imul(key, 2654435761));
  const counts = Array.from({ length: 1000 }, (_, key) => sketch.count(Math.imul(key, 2654435761)));
  expect(counts.every((count, key) => count >= (key % 5) + 1)).toBe(true);
  expect(counts.filter((count, key) => count !== (key % 5) + 1).length).toBeLessThan(5);
});

test("a sketch forgets: counts are halved after a period", () => {
  const sketch = new UseSketch(256);
  for (let use = 0; use < 100; use++) sketch.add(7);
  for (let use = 100; use < 8 * 256; use++) sketch.add(1000 + use);
  expect(sketch.count(7)).toBeLessThanOrEqual(60);
  expect(sketch.count(7)).toBeGreaterThanOrEqual(50);
});
