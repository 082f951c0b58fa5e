import { expect, test } from "vitest";
import { tenantScope } from "./tenant-scope.ts";

const hex = (...facts: Parameters<typeof tenantScope>) => Buffer.from(tenantScope(...facts)).toString("hex");

test("a scope is that of secret, key and salt; a salt narrows and never leads into another tenant's scope", () => {
  const scopes = [
    hex("secret", undefined, undefined),
    hex("secret", "Bearer one", undefined),
    hex("secret", "Bearer two", undefined),
    hex("secret", "Bearer one", "salt"),
    hex("secret", "Bearer two", "salt"),
    hex("secret", undefined, "salt"),
    hex("secret", undefined, "tenant:default"),
    hex("other", "Bearer one", undefined),
  ];
  expect(new Set(scopes).size).toBe(scopes.length);
  expect(hex("secret", "bearer  one", "salt")).toBe(hex("secret", "Bearer one", "salt"));
  expect(scopes[0]).toHaveLength(32);
});
