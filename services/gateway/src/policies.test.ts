import { createHash } from "node:crypto";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ServiceClass } from "@kvasir/proto";
import { expect, test } from "vitest";
import { tierOf, type WishFields, wishesOf } from "./placement-wishes.ts";
import { loadPolicies, NO_POLICIES, policiesFrom } from "./policies.ts";

const digest = (key: string) => createHash("sha256").update(key).digest("hex");
const FILE = {
  tenants: {
    acme: {
      key_sha256: [digest("k1"), digest("k2")],
      weight: 4,
      service_tier: "priority",
      slo: { ttft_ms: 500, on_miss: "best_effort" },
    },
  },
  others: { slo: { tpot_ms: 80 } },
  models: { tiny: { slo: { ttft_ms: 2_000, tpot_ms: 60 } } },
};
const POLICIES = policiesFrom(FILE, "f");
const NONE: WishFields = {
  slo: undefined,
  serviceTier: undefined,
  priority: 0,
  sessionId: undefined,
  promptCacheKey: undefined,
};
const wishes = (authorization: string | undefined, fields: Partial<WishFields> = {}, policies = POLICIES) =>
  wishesOf(authorization === undefined ? {} : { authorization }, { ...NONE, ...fields }, "tiny", "s", policies, {
    ttft_ms: 9_000,
  });

test("a tenant's keys share its weight, tier and targets; what it does not say is its model's, then the gateway's", () => {
  const [one, two] = [wishes("Bearer k1"), wishes("Bearer k2")];
  expect(one).toEqual(two);
  expect(one).toMatchObject({
    tenantWeight: 4,
    serviceClass: ServiceClass.PRIORITY,
    objectives: { ttftMs: 500, tpotMs: 60, mayBeLate: true },
  });
  expect(wishes("Bearer other").objectives).toEqual({ ttftMs: 2_000, tpotMs: 80, mayBeLate: false });
});

test("with a file whoever it does not name shares one share; without one each key is a tenant", () => {
  expect(wishes("Bearer x").tenant).toEqual(wishes("Bearer y").tenant);
  expect(wishes("Bearer x").tenant).toEqual(wishes(undefined).tenant);
  expect(wishes("Bearer x").tenant).not.toEqual(wishes("Bearer k1").tenant);
  expect(wishes("Bearer x", {}, NO_POLICIES).tenant).not.toEqual(wishes("Bearer y", {}, NO_POLICIES).tenant);
});

test("the tier is the body's, and auto is the tenant's", () => {
  expect(tierOf(wishes("Bearer k1", { serviceTier: "flex" }).serviceClass)).toBe("flex");
  expect(tierOf(wishes("Bearer k1", { serviceTier: "auto" }).serviceClass)).toBe("priority");
  expect(tierOf(wishes("Bearer x", { serviceTier: "auto" }).serviceClass)).toBe("default");
});

test("a conversation is named by its id, else by the prompt's cache key; names of two tenants never meet", () => {
  const none = wishes("Bearer k1");
  expect([none.sessionKey.length, none.promptClass.length]).toEqual([0, 0]);
  const both = wishes("Bearer k1", { sessionId: "s", promptCacheKey: "p" });
  expect(wishes("Bearer k1", { sessionId: "s" }).sessionKey).toEqual(both.sessionKey);
  expect(wishes("Bearer k1", { promptCacheKey: "p" }).promptClass).toEqual(both.promptClass);
  expect(wishes("Bearer k1", { promptCacheKey: "p" }).sessionKey.length).toBe(16);
  expect(wishes("Bearer x", { sessionId: "s" }).sessionKey).not.toEqual(both.sessionKey);
  expect(() => wishesOf({ "x-session-id": "x".repeat(300) }, NONE, "tiny", "s", POLICIES, {})).toThrow(
    /300 characters/,
  );
});

test.each([
  [{ tenants: { a: { key_sha256: ["zz"] } } }, /^f: tenants.a.key_sha256.0 is wrong: is no SHA-256 in hex/],
  [{ tenants: { a: { key_sha256: [digest("k")], weight: 0 } } }, /^f: tenants.a.weight is wrong/],
  [
    { tenants: { a: { key_sha256: [digest("k")] }, b: { key_sha256: [digest("k")] } } },
    /tenants a and b have the same key/,
  ],
  [{ models: { m: { slo: { ttft: 5 } } } }, /^f: models.m.slo is wrong: ttft means nothing there/],
  [{ others: { slo: { on_miss: "wait" } } }, /^f: others.slo.on_miss is wrong/],
  [[], /^f: the file is wrong/],
])("a file that says %j is refused with the field", (file, message) => {
  expect(() => policiesFrom(file, "f")).toThrow(message);
});

test("a file is read from disk, and says which it is when it cannot be", () => {
  const path = join(mkdtempSync(join(tmpdir(), "kvasir-")), "policies.json");
  expect(() => loadPolicies(path)).toThrow(/cannot be read/);
  writeFileSync(path, "{");
  expect(() => loadPolicies(path)).toThrow(/policies.json is not JSON/);
  writeFileSync(path, JSON.stringify(FILE));
  expect(loadPolicies(path).tenantOf("Bearer k2").name).toBe("acme");
});
