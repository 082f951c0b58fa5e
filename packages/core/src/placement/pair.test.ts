import { expect, test } from "vitest";
import { kvDifference, refusedPairs } from "./pair.ts";
import { facts } from "./testing/world.ts";

const { kvModel } = facts("p0");
const other = (change: Partial<typeof kvModel>) => ({
  fingerprint: "bb".repeat(16),
  kvModel: { ...kvModel, ...change },
});

test("what keeps two workers apart is named with both values", () => {
  const of = (change: Partial<typeof kvModel>) => kvDifference(facts("p0"), facts("d0", other(change)));
  expect(of({ kvHeadCount: 3 })).toBe("kv_head_count is 2 and 3");
  expect(of({ layerCount: 30, headSize: 64 })).toBe("layer_count is 4 and 30, head_size is 16 and 64");
  expect(of({ modelRevision: "0123456789abcdef".repeat(4) })).toBe("model_revision is aa and 0123456789ab");
  expect(of({ rope: "base=500000,dim=64,scaling=none" })).toBe(
    `rope is ${kvModel.rope} and base=500000,dim=64,scaling=none`,
  );
  expect(of({})).toBe(`fingerprint is ${"aa".repeat(16)} and ${"bb".repeat(16)}`);
  expect(kvDifference(facts("p0"), facts("d0", { blockSize: 64, kvBytesPerToken: 2_000 }))).toBeUndefined();
});

test("a worker that registers is refused with those it would exchange KV with, and only with them", () => {
  const strange = other({ modelRevision: "bb" });
  const known = [
    facts("d1", strange),
    facts("d0", strange),
    facts("d2"),
    facts("p1", strange),
    facts("m0", strange),
    facts("d3", { ...strange, model: "big" }),
  ];
  const reason = "model_revision is aa and bb";
  expect(refusedPairs(facts("p0"), known)).toEqual([
    { workerId: "d0", reason },
    { workerId: "d1", reason },
  ]);
  expect(refusedPairs(facts("d4"), known)).toEqual([{ workerId: "p1", reason }]);
  expect(refusedPairs(facts("m1"), known)).toEqual([]);
});
