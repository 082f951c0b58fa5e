import { BlockPool, type Instant, LeaseTable, nanosFromMs, type SequencePhase } from "@kvasir/core";
import { expect, test } from "vitest";
import { auditBlocks } from "./audit.ts";

const at = (ms: number) => nanosFromMs(ms) as number as Instant;

function sequence(sequenceId: number, phase: SequencePhase, blockIds: number[], rest: object = {}) {
  return {
    spec: { sequenceId },
    worstCaseBlockCount: 3,
    phase,
    blockIds,
    inFlightCount: 0,
    transferOpen: false,
    awaited: undefined,
    copySources: [],
    ...rest,
  };
}

function world() {
  const pool = new BlockPool(10);
  pool.reserve(1, 8);
  pool.take(1, 6);
  return { pool, leases: new LeaseTable(), now: at(0), isOwned: (sequenceId: number) => sequenceId !== 9 };
}

test("blocks of owned, draining and leased sequences are accounted for", () => {
  const facts = world();
  facts.leases.grant("a", "reservation", 2, nanosFromMs(100), at(0));
  facts.leases.grant("b", "pin", 3, nanosFromMs(100), at(0));
  const sequences = [
    sequence(1, "decoding", [0, 1]),
    sequence(2, "receiving", [2]),
    sequence(3, "pinned", [3]),
    sequence(9, "ended", [4], { inFlightCount: 1 }),
    sequence(9, "ended", [5], { transferOpen: true }),
  ];
  expect(auditBlocks({ ...facts, sequences })).toEqual({
    total: 10,
    free: 4,
    used: 6,
    reserved: 2,
    leased: 3,
    pinned: 1,
    cached: 0,
    orphaned: 0,
  });
});

test("a block without a holder, one whose owner is gone, one of an ended sequence, and one under a lapsed lease are orphans", () => {
  const facts = world();
  facts.leases.grant("a", "pin", 3, nanosFromMs(100), at(0));
  const sequences = [
    sequence(1, "decoding", [0]),
    sequence(9, "decoding", [1]),
    sequence(9, "ended", [2]),
    sequence(3, "pinned", [3]),
  ];
  expect(auditBlocks({ ...facts, sequences }).orphaned).toBe(4);
  expect(auditBlocks({ ...facts, sequences, now: at(5_000) })).toMatchObject({ orphaned: 5, pinned: 0 });
});
