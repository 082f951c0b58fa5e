import fc from "fast-check";
import { expect, test } from "vitest";
import { type HolderEvent, MEDIA, type Medium, PrefixIndex, PrefixMatches } from "./index.ts";
import { hexOf, NaiveIndex } from "./testing/naive-index.ts";

const HOLDERS = 40;
/** A tree of prompts: block n follows block ⌊n / 2⌋, so that prompts share beginnings and part. */
const BLOCKS = 64;

/** The first two words of many are equal, so that slots and tags collide. */
function hashOf(block: number): Uint8Array {
  const words = new Uint32Array([block % 5, block % 3, block, 7]);
  return new Uint8Array(words.buffer);
}

function packed(blocks: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(blocks.length * 16);
  for (const [index, block] of blocks.entries()) bytes.set(hashOf(block), index * 16);
  return bytes;
}

function promptOf(leaf: number): number[] {
  const path: number[] = [];
  for (let block = leaf; block > 0; block >>= 1) path.unshift(block);
  return path;
}

type Operation =
  | {
      kind: "event";
      holder: number;
      what: HolderEvent["kind"];
      medium: Medium;
      leaf: number;
      skip: number;
      slip: number;
    }
  | { kind: "epoch"; holder: number }
  | { kind: "remove"; holder: number }
  | { kind: "sweep"; count: number };

const anyHolder = fc.oneof({ weight: 3, arbitrary: fc.nat(3) }, fc.nat(HOLDERS - 1));
const operations: fc.Arbitrary<Operation[]> = fc.array(
  fc.oneof(
    {
      weight: 20,
      arbitrary: fc.record({
        kind: fc.constant("event" as const),
        holder: anyHolder,
        what: fc.constantFrom(
          ...([
            "BlocksStored",
            "BlocksStored",
            "BlocksStored",
            "BlocksRemoved",
            "BlocksCleared",
            "SnapshotPart",
          ] as const),
        ),
        medium: fc.constantFrom(...MEDIA),
        leaf: fc.integer({ min: 1, max: BLOCKS - 1 }),
        skip: fc.nat(2),
        slip: fc.constantFrom(0, 0, 0, 0, 0, 0, 0, 1, -1),
      }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("epoch" as const), holder: anyHolder }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("remove" as const), holder: anyHolder }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant("sweep" as const), count: fc.integer({ min: 1, max: 9 }) }) },
  ),
  { minLength: 20, maxLength: 200, size: "max" },
);

test("index and model agree on every prompt, whatever is stored, removed, lost, repeated, restarted or swept", () => {
  const outcomes = new Map<string, number>();
  let wideCount = 0;
  fc.assert(
    fc.property(operations, fc.integer({ min: 1, max: 6 }), (schedule, wideAbove) => {
      const index = new PrefixIndex({ blockCapacity: 40_000, holderCapacity: 256, wideAbove });
      const model = new NaiveIndex();
      const epochs = new Map<number, number>();
      const matches = new PrefixMatches(index.holderCapacity);
      for (const operation of schedule) {
        if (operation.kind === "sweep") index.sweep(operation.count);
        else {
          const holderId = `h${operation.holder}`;
          if (operation.kind === "epoch") epochs.set(operation.holder, (epochs.get(operation.holder) ?? 1) + 1);
          else if (operation.kind === "remove") {
            expect(index.removeHolder(holderId)).toBe(model.holders.delete(holderId));
          } else {
            const event = eventOf(operation, epochs.get(operation.holder) ?? 1, model);
            const outcome = index.apply(holderId, event);
            expect(outcome.kind).toBe(model.apply(holderId, event));
            outcomes.set(outcome.kind, (outcomes.get(outcome.kind) ?? 0) + 1);
          }
        }
        for (let leaf = BLOCKS / 2; leaf < BLOCKS; leaf += 11) {
          const prompt = packed(promptOf(leaf));
          index.match(prompt, matches);
          const expected = model.match(hexOf(prompt));
          if (expected.size > wideAbove) wideCount++;
          const found = new Map<string, number[]>();
          for (const holder of matches.holders.subarray(0, matches.size)) {
            found.set(
              index.holderId(holder),
              MEDIA.map((medium) => matches.blockCount(holder, medium)),
            );
          }
          expect(found).toEqual(expected);
        }
      }
      index.checkInvariants();
      for (const holderId of model.holders.keys()) expect(index.removeHolder(holderId)).toBe(true);
      while (index.sweep(7)) index.checkInvariants();
      expect([index.blockCount, index.heldBlockCount, index.holderCount]).toEqual([0, 0, 0]);
    }),
    { numRuns: 120 },
  );
  for (const kind of ["applied", "repeated", "needs_snapshot"])
    expect(outcomes.get(kind) ?? 0, kind).toBeGreaterThan(50);
  expect(wideCount).toBeGreaterThan(50);
}, 60_000);

/** The next event of a holder, or one that comes too late or too early. */
function eventOf(operation: Operation & { kind: "event" }, epoch: number, model: NaiveIndex): HolderEvent {
  const { holder, what, medium, leaf, skip, slip } = operation;
  const known = model.holders.get(`h${holder}`);
  const isSame = known !== undefined && known.epoch === epoch;
  const next = (isSame ? known.sequence : 0) + 1;
  const sequence = Math.max(1, next + slip);
  const hashes = packed(promptOf(leaf).slice(skip));
  if (what === "BlocksCleared") return { kind: what, epoch, sequence };
  if (what !== "SnapshotPart") return { kind: what, epoch, sequence, medium, hashes };
  const pending = isSame ? known.snapshot : undefined;
  if (pending !== undefined && skip > 0) {
    return {
      kind: what,
      epoch,
      sequence: pending.sequence,
      part: pending.nextPart + slip,
      isLast: skip === 2,
      medium,
      hashes,
    };
  }
  return { kind: what, epoch, sequence: sequence + 1, part: 0, isLast: skip === 1, medium, hashes };
}
