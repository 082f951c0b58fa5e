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
