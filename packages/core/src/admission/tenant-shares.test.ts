import { expect, test } from "vitest";
import { TenantShares } from "./tenant-shares.ts";

test("who begins to wait is lifted to the least of those that wait, or to the last that did: idleness is no credit", () => {
  const shares = new TenantShares();
  shares.wait("a", 1);
  shares.charge("a", 1_000);
  shares.wait("b", 1);
  expect(shares.counter("b")).toBe(1_000);
  shares.charge("b", 500);
  shares.leave("a");
  shares.leave("b");
  shares.wait("c", 1);
  expect(shares.counter("c")).toBe(1_500);
  shares.wait("a", 1);
  expect(shares.counter("a")).toBe(1_500);
});

test("a tenant that is ahead keeps what it was served, and a weight of four makes a token count a quarter", () => {
  const shares = new TenantShares();
  shares.wait("a", 1);
  shares.wait("b", 4);
  shares.charge("a", 1_000);
  shares.charge("b", 1_000);
  expect([shares.counter("a"), shares.counter("b")]).toEqual([1_000, 250]);
  shares.leave("a");
  shares.wait("a", 1);
  expect(shares.counter("a")).toBe(1_000);
});

test("tenants that neither wait nor run are forgotten when there are many, those first that it makes no difference for", () => {
  const shares = new TenantShares();
  shares.wait("heavy", 1);
  shares.charge("heavy", 1e6);
  shares.leave("heavy");
  shares.wait("runs", 1);
  shares.begin("runs");
  shares.leave("runs");
  for (let i = 0; i < 20_000; i++) {
    shares.wait(`t${i}`, 1);
    shares.charge(`t${i}`, i);
    shares.leave(`t${i}`);
  }
  expect(shares.size).toBeLessThan(8_200);
  expect(shares.counter("t0")).toBe(0);
  expect(shares.counter("t19999")).toBeGreaterThan(1e6);
  shares.end("runs");
});

test("who takes over counts on: a tenant that was served much stays behind one that waited, whoever comes back first", () => {
  const before = new TenantShares();
  before.wait("patient", 1);
  before.wait("greedy", 1);
  before.charge("greedy", 5_000);
  before.charge("patient", 100);
  const after = new TenantShares();
  after.restore(before.snapshot());
  after.wait("greedy", 1);
  after.wait("patient", 1);
  expect([after.counter("greedy"), after.counter("patient")]).toEqual([5_000, 100]);
  after.leave("patient");
  after.leave("greedy");
  // Where the last of those that waited stands.
  after.wait("new", 1);
  expect(after.counter("new")).toBe(5_000);
});

test("a tenant that waited when the leader died and never came back saves nothing up, and holds nobody down", () => {
  const before = new TenantShares();
  before.wait("gone", 1);
  before.wait("busy", 1);
  before.charge("busy", 5_000);
  const after = new TenantShares();
  after.restore(before.snapshot());
  after.wait("busy", 1);
  after.settle();
  after.wait("gone", 1);
  expect(after.counter("gone")).toBe(5_000);
});

test("when nobody waited the next leader's tenants begin where the last one stood, not at zero", () => {
  const before = new TenantShares();
  before.wait("a", 1);
  before.charge("a", 900);
  before.leave("a");
  const after = new TenantShares();
  after.restore(before.snapshot());
  after.wait("new", 1);
  expect(after.counter("new")).toBe(900);
  expect(after.counter("a")).toBe(900);
});
