import { expect, test } from "vitest";
import { identityFromUri, identityText, PROCESS_ROLES } from "./identity.ts";

test("a certificate's URI names role and id", () => {
  for (const role of PROCESS_ROLES) {
    const identity = identityFromUri(`spiffe://kvasir/${role}/worker-0.a_b`);
    expect(identity).toEqual({ role, id: "worker-0.a_b" });
    expect(identity && identityText(identity)).toBe(`${role}/worker-0.a_b`);
  }
});

test.each([
  "spiffe://kvasir/decode",
  "spiffe://kvasir/decode/",
  "spiffe://kvasir/decode/a/b",
  "spiffe://kvasir/decode/a b",
  'spiffe://kvasir/decode/a"',
  "spiffe://kvasir/Decode/a",
  "spiffe://kvasir/planner/a",
  "spiffe://other/decode/a",
  "https://kvasir/decode/a",
  `spiffe://kvasir/decode/${"a".repeat(129)}`,
])("%s names nobody", (uri) => expect(identityFromUri(uri)).toBeUndefined());
