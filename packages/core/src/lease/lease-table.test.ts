import { expect, test } from "vitest";
import { type Instant, NEVER, nanosFromMs } from "../time.ts";
import { LeaseTable } from "./lease-table.ts";

const at = (ms: number) => nanosFromMs(ms) as number as Instant;

test("a lease lapses at its expiry, not a nanosecond before", () => {
  const leases = new LeaseTable();
  leases.grant("a", "pin", 1, nanosFromMs(100), at(0));
  expect(leases.nextExpiry()).toBe(at(100));
  expect(leases.expire((at(100) - 1) as Instant)).toEqual([]);
  expect(leases.expire(at(100)).map((lease) => lease.sequenceId)).toEqual([1]);
  expect(leases.expire(at(200))).toEqual([]);
  expect(leases.nextExpiry()).toBe(NEVER);
});

test("a repeated grant gets the first answer; releasing twice is fine", () => {
  const leases = new LeaseTable();
  const first = leases.grant("a", "reservation", 1, nanosFromMs(100), at(0));
  expect(leases.grant("a", "pin", 2, nanosFromMs(900), at(50))).toEqual(first);
  expect(leases.release("a")).toBe(true);
  expect(leases.release("a")).toBe(false);
  leases.checkInvariants();
});

test("extending moves the end forward only, and never wakes the dead", () => {
  const leases = new LeaseTable();
  leases.grant("a", "pin", 1, nanosFromMs(100), at(0));
  expect(leases.extend("a", nanosFromMs(10), at(20))).toBe(true);
  expect(leases.nextExpiry()).toBe(at(100));
  expect(leases.extend("a", nanosFromMs(100), at(50))).toBe(true);
  expect(leases.nextExpiry()).toBe(at(150));
  expect(leases.extend("a", nanosFromMs(100), at(150))).toBe(false);
  expect(leases.extend("b", nanosFromMs(100), at(0))).toBe(false);
});

test("leases end in the order of their expiry, ties by id", () => {
  const leases = new LeaseTable();
  leases.grant("c", "pin", 1, nanosFromMs(10), at(0));
  leases.grant("b", "pin", 2, nanosFromMs(5), at(0));
  leases.grant("a", "pin", 3, nanosFromMs(10), at(0));
  expect(leases.expire(at(10)).map((lease) => lease.leaseId)).toEqual(["b", "a", "c"]);
});
