import fc from "fast-check";
import { expect, test } from "vitest";
import { type BlockId, BlockPool } from "./block-pool.ts";

test("what is reserved cannot be promised twice, and taking within a reservation always works", () => {
  const pool = new BlockPool(11);
  expect(pool.reserve(1, 6)).toEqual({ kind: "reserved" });
  expect(pool.reserve(2, 6)).toEqual({ kind: "full", missingBlockCount: 1 });
  expect(pool.reserve(2, 5)).toEqual({ kind: "reserved" });
  expect(pool.take(2, 5)).toEqual([0, 1, 2, 3, 4]);
  expect(pool.take(1, 2)).toEqual([5, 6]);
  pool.cancelReservation(1);
  expect([pool.freeCount, pool.reservedCount, pool.availableCount, pool.takenCount]).toEqual([4, 0, 4, 7]);
});

test("the lowest run that fits comes first, then the lowest single blocks", () => {
  const pool = new BlockPool(8);
  pool.reserve(1, 8);
  pool.take(1, 8);
  pool.free([1, 3, 4, 6] as BlockId[]);
  pool.reserve(2, 2);
  expect(pool.take(2, 2)).toEqual([3, 4]);
  pool.reserve(3, 2);
  expect(pool.take(3, 2)).toEqual([1, 6]);
});

test("taking beyond the reservation and freeing twice are defects", () => {
  const pool = new BlockPool(4);
  pool.reserve(1, 2);
  expect(() => pool.take(1, 3)).toThrow("owner 1 takes 3 blocks of 2 reserved");
  const [first] = pool.take(1, 1);
  pool.free([first as BlockId]);
  expect(() => pool.free([first as BlockId])).toThrow("freed but not taken");
});

test("random use keeps every count", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 40 }),
      fc.array(fc.tuple(fc.nat(3), fc.nat(9), fc.nat(12))),
      (size, operations) => {
        const pool = new BlockPool(size);
        const held = new Map<number, { reserved: number; blockIds: BlockId[] }>();
        for (const [op, owner, count] of operations) {
          const entry = held.get(owner);
          if (op === 0 && !entry && pool.reserve(owner, count).kind === "reserved")
            held.set(owner, { reserved: count, blockIds: [] });
          if (op === 1 && entry && entry.reserved >= count) {
            entry.reserved -= count;
            entry.blockIds.push(...pool.take(owner, count));
          }
          if (op === 2 && entry) pool.free(entry.blockIds.splice(0, count));
          if (op === 3 && entry) {
            pool.cancelReservation(owner);
            pool.free(entry.blockIds);
            held.delete(owner);
          }
          pool.checkInvariants();
          const all = [...held.values()].flatMap((holder) => holder.blockIds);
          expect(new Set(all).size).toBe(all.length);
          expect(pool.takenCount).toBe(all.length);
        }
      },
    ),
  );
});
