import { expect, test } from "vitest";
import { type HolderEvent, type Medium, PrefixIndex } from "./index.ts";

const prompt = (...blocks: number[]) =>
  new Uint8Array(new Uint32Array(blocks.flatMap((block) => [block, 0, 0, 1])).buffer);
const stored = (sequence: number, hashes: Uint8Array, medium: Medium = "device", epoch = 1): HolderEvent => ({
  kind: "BlocksStored",
  epoch,
  sequence,
  medium,
  hashes,
});
const removed = (sequence: number, hashes: Uint8Array, medium: Medium = "device"): HolderEvent => ({
  kind: "BlocksRemoved",
  epoch: 1,
  sequence,
  medium,
  hashes,
});

function small(extra: { blockCapacity?: number; holderCapacity?: number } = {}): PrefixIndex {
  return new PrefixIndex({ blockCapacity: 64, holderCapacity: 32, ...extra });
}

/** holder id → leading blocks. */
function match(index: PrefixIndex, hashes: Uint8Array, medium: Medium = "disk"): Record<string, number> {
  const matches = index.match(hashes);
  return Object.fromEntries(
    [...matches.holders.subarray(0, matches.size)].map((holder) => [
      index.holderId(holder),
      matches.blockCount(holder, medium),
    ]),
  );
}

test("each holder's leading run ends at the first block that it has not", () => {
  const index = small();
  index.apply("a", stored(1, prompt(1, 2, 3, 4)));
  index.apply("b", stored(1, prompt(1, 2)));
  index.apply("c", stored(1, prompt(1, 3, 4)));
  index.apply("d", stored(1, prompt(2, 3, 4)));
  expect(match(index, prompt(1, 2, 3, 4, 5))).toEqual({ a: 4, b: 2, c: 1 });
});

test("a run on fast media may be shorter than the run in all", () => {
  const index = small();
  index.apply("a", stored(1, prompt(1, 2)));
  index.apply("a", stored(2, prompt(2, 3), "host"));
  index.apply("a", stored(3, prompt(4), "disk"));
  expect(match(index, prompt(1, 2, 3, 4), "device")).toEqual({ a: 2 });
  expect(match(index, prompt(1, 2, 3, 4), "host")).toEqual({ a: 3 });
  expect(match(index, prompt(1, 2, 3, 4), "store")).toEqual({ a: 3 });
  expect(match(index, prompt(1, 2, 3, 4), "disk")).toEqual({ a: 4 });
});

test("a block that was stored twice is gone when it was removed twice", () => {
  const index = small();
  index.apply("a", stored(1, prompt(1)));
  index.apply("a", stored(2, prompt(1)));
  index.apply("a", removed(3, prompt(1)));
  expect(match(index, prompt(1))).toEqual({ a: 1 });
  index.apply("a", removed(4, prompt(1), "host"));
  expect(match(index, prompt(1))).toEqual({ a: 1 });
  index.apply("a", removed(5, prompt(1)));
  expect(match(index, prompt(1))).toEqual({});
  expect(index.blockCount).toBe(0);
});

test("a missing event is told once, and only a snapshot goes on from there", () => {
  const index = small();
  index.apply("a", stored(1, prompt(1)));
  expect(index.apply("a", stored(3, prompt(3)))).toEqual({ kind: "needs_snapshot", expectedSequence: 2, isNew: true });
  expect(index.apply("a", stored(4, prompt(4)))).toEqual({ kind: "needs_snapshot", expectedSequence: 2, isNew: false });
  expect(match(index, prompt(1))).toEqual({ a: 1 });

  const part = (number: number, isLast: boolean, hashes: Uint8Array): HolderEvent => {
    return { kind: "SnapshotPart", epoch: 1, sequence: 4, part: number, isLast, medium: "device", hashes };
  };
  expect(index.apply("a", part(0, false, prompt(7)))).toEqual({ kind: "applied", ignoredBlockCount: 0 });
  expect(match(index, prompt(7))).toEqual({});
  expect(index.apply("a", part(1, true, prompt(8)))).toEqual({ kind: "applied", ignoredBlockCount: 0 });
  expect(match(index, prompt(7, 8))).toEqual({ a: 2 });
  expect(match(index, prompt(1))).toEqual({});
  expect(index.apply("a", stored(5, prompt(9)))).toEqual({ kind: "applied", ignoredBlockCount: 0 });
});

test("a new epoch begins with nothing, and the old one is refused", () => {
  const index = small();
  index.apply("a", stored(1, prompt(1)));
  expect(index.apply("a", stored(1, prompt(2), "device", 2))).toEqual({ kind: "applied", ignoredBlockCount: 0 });
  expect(match(index, prompt(1))).toEqual({});
  expect(match(index, prompt(2))).toEqual({ a: 1 });
  expect(index.apply("a", stored(2, prompt(3)))).toEqual({ kind: "stale_epoch", epoch: 2 });
});

test("a holder that left is not seen at once, and its blocks go in slices", () => {
  const index = small();
  index.apply("a", stored(1, prompt(1, 2, 3)));
  index.apply("b", stored(1, prompt(1, 2)));
  index.removeHolder("a");
  expect(match(index, prompt(1, 2, 3))).toEqual({ b: 2 });
  expect([index.sweep(2), index.heldBlockCount]).toEqual([true, 3]);
  expect([index.sweep(2), index.heldBlockCount, index.blockCount]).toEqual([false, 2, 2]);
});

test("blocks and holders beyond the room there is are told", () => {
  const index = small({ blockCapacity: 2 });
  expect(index.apply("a", stored(1, prompt(1, 2, 3)))).toEqual({ kind: "applied", ignoredBlockCount: 1 });
  expect(match(index, prompt(1, 2, 3))).toEqual({ a: 2 });
  for (let number = 1; number < 32; number++)
    index.apply(`h${number}`, { kind: "BlocksCleared", epoch: 1, sequence: 1 });
  expect(index.apply("late", stored(1, prompt(1)))).toEqual({ kind: "too_many_holders", holderMax: 32 });
});

test("hashes may lie anywhere in a buffer", () => {
  const index = small();
  const shifted = new Uint8Array(33);
  shifted.set(prompt(1, 2), 1);
  index.apply("a", stored(1, shifted.subarray(1)));
  expect(match(index, prompt(1, 2))).toEqual({ a: 2 });
});
