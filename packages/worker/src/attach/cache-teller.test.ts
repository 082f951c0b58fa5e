import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { type BlockId, BlockPool, hashBlocks, PrefixIndex, PrefixMatches, prefixRoot } from "@kvasir/core";
import { type CacheEvent, CacheEventSchema } from "@kvasir/proto";
import { expect, test } from "vitest";
import { CacheTeller, cacheOfPool } from "./cache-teller.ts";

const ROOT = prefixRoot({ tenantScope: new Uint8Array(16), fingerprint: new Uint8Array(16) }, 1);

/** A text of so many blocks is computed, kept and left. */
function run(pool: BlockPool, owner: number, tokenIds: readonly number[]): void {
  const hashes = hashBlocks(ROOT, tokenIds, 1);
  const reused = pool.find(hashes);
  pool.reserve(owner, tokenIds.length, reused);
  const blockIds = [...reused, ...pool.take(owner, tokenIds.length - reused.length)];
  for (const [index, blockId] of blockIds.entries()) pool.keep(blockId as BlockId, hashes, 16 * index);
  pool.free(blockIds);
  pool.cancelReservation(owner);
}

const text = (first: number, count: number) => Array.from({ length: count }, (_, index) => first + index);

test("an index that is told everything knows of each prompt what the pool would find, over gaps and connections", () => {
  const pool = new BlockPool(64);
  const teller = new CacheTeller(cacheOfPool(pool));
  const index = new PrefixIndex({ blockCapacity: 4_096, holderCapacity: 32 });
  const matches = new PrefixMatches(32);
  const tell = (events: ReturnType<CacheTeller["changes"]>) => {
    for (const event of events) {
      const sent: CacheEvent = fromBinary(
        CacheEventSchema,
        toBinary(CacheEventSchema, create(CacheEventSchema, event)),
      );
      const common = { epoch: 1, sequence: Number(sent.sequence), medium: "device" } as const;
      const { kind } = sent;
      if (kind.case === "stored") index.apply("w", { ...common, kind: "BlocksStored", hashes: kind.value });
      else if (kind.case === "removed") index.apply("w", { ...common, kind: "BlocksRemoved", hashes: kind.value });
      else if (kind.case === "snapshot") index.apply("w", { ...common, ...kind.value, kind: "SnapshotPart" });
    }
  };
  const expectKnown = () => {
    for (let first = 0; first < 40_000; first += 1_000) {
      const hashes = hashBlocks(ROOT, text(first, 20), 1);
      const holder = index.match(hashes, matches).size > 0 ? matches.holders[0] : undefined;
      expect(holder === undefined ? 0 : matches.blockCount(holder, "device")).toBe(pool.find(hashes).length);
    }
    expect(index.blockCountOf("w")).toBe(pool.cachedCount);
  };

  run(pool, 1, text(0, 20));
  // Nothing is told before the first snapshot.
  expect(teller.changes()).toEqual([]);
  tell(teller.snapshot());
  expectKnown();
  for (let owner = 2; owner < 40; owner++) {
    run(pool, owner, text((owner % 9) * 1_000, 5 + (owner % 16)));
    tell(teller.changes());
    expectKnown();
  }
  // What a broken connection swallowed comes with the snapshot of the next one.
  run(pool, 50, text(20_000, 20));
  teller.changes();
  tell(teller.snapshot());
  expectKnown();
  // More changes than the journal remembers: a snapshot again.
  for (let owner = 60; owner < 500; owner++) run(pool, owner, text(owner * 50, 20));
  expect(teller.changes()[0]?.kind?.case).toBe("snapshot");
  run(pool, 501, text(30_000, 20));
  tell(teller.snapshot());
  expectKnown();
});
