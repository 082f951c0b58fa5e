import fc from "fast-check";
import { expect, test } from "vitest";
import { hashBlocks, prefixRoot } from "../prefix/block-hash.ts";
import { type BlockId, BlockPool } from "./block-pool.ts";

const ROOT = prefixRoot({ tenantScope: new Uint8Array(16), fingerprint: new Uint8Array(16) }, 1);
/** Hashes of a text whose tokens are each a block. */
const hashesOf = (...tokenIds: number[]) => hashBlocks(ROOT, tokenIds, 1);
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

/** A sequence that computes a text, keeps it and ends. */
function run(pool: BlockPool, owner: number, hashes: Uint8Array): BlockId[] {
  const count = hashes.length / 16;
  const reused = pool.find(hashes);
  expect(pool.reserve(owner, count, reused)).toEqual({ kind: "reserved" });
  const blockIds = [...reused, ...pool.take(owner, count - reused.length)];
  for (const [index, blockId] of blockIds.entries()) pool.keep(blockId, hashes, index * 16);
  pool.free(blockIds);
  pool.cancelReservation(owner);
  pool.checkInvariants();
  return blockIds;
}

const changes = (pool: BlockPool, from = 0) => {
  const reading = pool.journal.read(from, 1_000);
  return reading.kind === "gap" ? "gap" : { stored: reading.stored.length / 16, removed: reading.removed.length / 16 };
};

test("what is free keeps its KV: the same text gets its blocks again, and a longer one their prefix", () => {
  const pool = new BlockPool(8);
  expect(run(pool, 1, hashesOf(1, 2, 3))).toEqual([0, 1, 2]);
  expect([pool.freeCount, pool.idleCount, pool.availableCount]).toEqual([8, 3, 8]);
  expect(run(pool, 2, hashesOf(1, 2, 9, 4))).toEqual([0, 1, 3, 4]);
  expect(changes(pool)).toEqual({ stored: 5, removed: 0 });
});

test("blank blocks are taken first, then the least recently used, and of one text its end before its beginning", () => {
  const pool = new BlockPool(6);
  run(pool, 1, hashesOf(1, 2));
  run(pool, 2, hashesOf(5, 6));
  pool.reserve(3, 5);
  // Blocks 4 and 5 are blank; of text 1, used longest ago, goes the end; then its beginning; then the end of text 2.
  expect(pool.take(3, 3)).toEqual([1, 4, 5]);
  expect(pool.find(hashesOf(1, 2))).toEqual([0]);
  expect(pool.take(3, 2)).toEqual([0, 3]);
  expect(pool.find(hashesOf(1, 2))).toEqual([]);
  expect(pool.find(hashesOf(5, 6))).toEqual([2]);
  expect(changes(pool)).toEqual({ stored: 1, removed: 3 });
  expect(changes(pool, 4)).toEqual({ stored: 0, removed: 3 });
  expect(pool.evictedCount).toBe(3);
});

test("a block that is reused is in no danger, and what others hold costs no room", () => {
  const pool = new BlockPool(4);
  run(pool, 1, hashesOf(1, 2));
  const hashes = hashesOf(1, 2, 3);
  pool.reserve(2, 3, pool.find(hashes));
  expect([pool.freeCount, pool.reservedCount, pool.availableCount]).toEqual([2, 1, 1]);
  // Two held and one more fits where three do not.
  expect(pool.reserve(3, 3)).toEqual({ kind: "full", missingBlockCount: 2 });
  expect(pool.reserve(3, 3, pool.find(hashes))).toEqual({ kind: "reserved" });
  expect([pool.holderCount(0), pool.holderCount(1), pool.availableCount]).toEqual([2, 2, 0]);
  pool.checkInvariants();
});

test("of two blocks with one hash, one stays when both are free, and readers hear of the hash once", () => {
  const pool = new BlockPool(4);
  const hashes = hashesOf(7);
  pool.reserve(1, 1);
  pool.reserve(2, 1);
  const [first] = pool.take(1, 1) as [BlockId];
  const [second] = pool.take(2, 1) as [BlockId];
  pool.keep(first, hashes, 0);
  pool.free([first]);
  // The first is idle when its twin comes: only one of them is kept.
  pool.keep(second, hashes, 0);
  expect([pool.idleCount, pool.cachedCount]).toEqual([0, 1]);
  pool.free([second]);
  pool.checkInvariants();
  expect(pool.find(hashes)).toEqual([second]);
  expect(changes(pool)).toEqual({ stored: 1, removed: 0 });
});

/** What a reader believes after a reading. */
function hear(heard: Set<string>, { stored, removed }: { stored: Uint8Array; removed: Uint8Array }): void {
  for (let offset = 0; offset < removed.length; offset += 16) heard.delete(hex(removed.subarray(offset, offset + 16)));
  for (let offset = 0; offset < stored.length; offset += 16) heard.add(hex(stored.subarray(offset, offset + 16)));
}

interface Held {
  readonly tokenIds: readonly number[];
  readonly blockIds: BlockId[];
  reserved: number;
}

test("random use keeps every count, finds only what was kept, and tells readers exactly what is there", () => {
  let reusedCount = 0;
  let evictedCount = 0;
  fc.assert(
    fc.property(
      fc.integer({ min: 2, max: 8 }),
      fc.array(
        fc.tuple(
          fc.constantFrom(0, 0, 1, 1, 1, 1, 1, 2, 3, 4),
          fc.nat(4),
          fc.array(fc.nat(2), { minLength: 1, maxLength: 6, size: "max" }),
        ),
        { minLength: 10, maxLength: 80, size: "max" },
      ),
      (size, operations) => {
        const pool = new BlockPool(size);
        const held = new Map<number, Held>();
        /** What lies in each block, whether a table knows of it or not. */
        const content = new Map<number, string>();
        const heard = new Set<string>();
        let read = 0;
        for (const [op, owner, tokenIds] of operations) {
          const entry = held.get(owner);
          if (op === 0 && entry === undefined) {
            const hashes = hashesOf(...tokenIds);
            const reused = pool.find(hashes);
            for (const [index, blockId] of reused.entries())
              expect(content.get(blockId)).toBe(hex(hashes.subarray(16 * index, 16 * index + 16)));
            if (pool.reserve(owner, tokenIds.length, reused).kind === "full") continue;
            reusedCount += reused.length;
            held.set(owner, { tokenIds, blockIds: [...reused], reserved: tokenIds.length - reused.length });
          } else if (op === 1 && entry !== undefined && entry.reserved > 0) {
            const [blockId] = pool.take(owner, 1) as [BlockId];
            entry.reserved--;
            const index = entry.blockIds.push(blockId) - 1;
            const hashes = hashesOf(...entry.tokenIds);
            content.set(blockId, hex(hashes.subarray(16 * index, 16 * index + 16)));
            pool.keep(blockId, hashes, 16 * index);
          } else if (op === 2 && entry !== undefined) {
            const found = pool.find(hashesOf(...entry.tokenIds), entry.blockIds.length);
            pool.reuse(owner, found);
            entry.blockIds.push(...found);
            entry.reserved -= found.length;
          } else if (op === 3 && entry !== undefined) {
            pool.cancelReservation(owner);
            pool.free(entry.blockIds);
            held.delete(owner);
          } else if (op === 4 && size % 5 === 0) {
            const { cachedCount } = pool;
            expect(pool.clear()).toBe(cachedCount);
            expect([pool.cachedCount, pool.idleCount, pool.snapshot().length]).toEqual([0, 0, 0]);
            expect(pool.journal.read(read, 3).kind).toBe("gap");
            read = pool.journal.next;
            heard.clear();
          }
          pool.checkInvariants();
          const holders = new Map<number, number>();
          for (const { blockIds } of held.values())
            for (const blockId of blockIds) holders.set(blockId, (holders.get(blockId) ?? 0) + 1);
          for (let blockId = 0; blockId < size; blockId++)
            expect(pool.holderCount(blockId)).toBe(holders.get(blockId) ?? 0);
          expect(pool.freeCount + holders.size).toBe(size);

          const reading = pool.journal.read(read, 3);
          if (reading.kind === "gap") throw new Error("the journal forgot what was just written");
          read = reading.next;
          hear(heard, reading);
        }
        for (let reading = pool.journal.read(read, 3); read < pool.journal.next; reading = pool.journal.read(read, 3)) {
          if (reading.kind === "gap") throw new Error("the journal forgot what was just written");
          read = reading.next;
          hear(heard, reading);
        }
        const snapshot = pool.snapshot();
        const there = Array.from({ length: snapshot.length / 16 }, (_, i) =>
          hex(snapshot.subarray(16 * i, 16 * i + 16)),
        );
        expect([...heard].sort()).toEqual([...there].sort());
        expect(new Set(there).size).toBe(there.length);
        evictedCount += pool.evictedCount;
      },
    ),
    { numRuns: 600 },
  );
  expect(reusedCount).toBeGreaterThan(0);
  expect(evictedCount).toBeGreaterThan(0);
});
