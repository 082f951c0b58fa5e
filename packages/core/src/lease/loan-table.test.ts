import { expect, test } from "vitest";
import { type BlockId, BlockPool } from "../block/block-pool.ts";
import { type Instant, nanosFromMs } from "../time.ts";
import { LoanTable } from "./loan-table.ts";

const hashes = Uint8Array.from({ length: 4 * 16 }, (_, index) => 1 + Math.floor(index / 16));
const now = 0 as Instant;

/** A pool of six blocks, four of which are cached. */
function cached(): BlockPool {
  const pool = new BlockPool(6);
  pool.reserve(1, 4);
  const blockIds = pool.take(1, 4);
  for (const [index, blockId] of blockIds.entries()) pool.keep(blockId, hashes, 16 * index);
  pool.free(blockIds);
  pool.cancelReservation(1);
  return pool;
}

test("lent blocks stay through any shortage, and are evicted as before when they are given back", () => {
  const pool = cached();
  const loans = new LoanTable(pool, 3);
  const outcome = loans.lend("a", hashes, nanosFromMs(10), now);
  expect(outcome).toMatchObject({ kind: "lent", loan: { blockIds: [0, 1, 2], expiresAt: nanosFromMs(10) } });
  expect(loans.lend("b", hashes, nanosFromMs(10), now)).toEqual({ kind: "too_many" });
  expect(pool.reserve(2, 4)).toEqual({ kind: "full", missingBlockCount: 1 });
  pool.reserve(2, 3);
  expect(pool.take(2, 3)).toEqual([3, 4, 5] as BlockId[]);
  pool.free([3, 4, 5] as BlockId[]);
  pool.cancelReservation(2);
  loans.giveBack("a");
  loans.giveBack("a");
  expect([loans.size, pool.freeCount, pool.find(hashes).length]).toEqual([0, 6, 3]);
  pool.checkInvariants();
});

test("what is promised to requests, or not there, is not lent", () => {
  const pool = cached();
  pool.reserve(2, 5);
  const loans = new LoanTable(pool, 6);
  expect(loans.lend("a", hashes, nanosFromMs(10), now)).toMatchObject({ loan: { blockIds: [0] } });
  expect(loans.lend("b", new Uint8Array(16), nanosFromMs(10), now)).toMatchObject({ loan: { blockIds: [] } });
  expect(loans.size).toBe(1);
});
