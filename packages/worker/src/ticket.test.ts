import { fromBinary } from "@bufbuild/protobuf";
import { TicketClaimsSchema } from "@kvasir/proto";
import { expect, test } from "vitest";
import { isSignedBy, signTicket } from "./ticket.ts";

test("a ticket is 32 bytes of HMAC over exactly the claims, and any change shows", () => {
  const key = new Uint8Array(32).fill(3);
  const ticket = signTicket({ leaseId: new Uint8Array(16), sourceEpoch: 7n, tokenEnd: 40 }, key);
  expect(ticket.mac).toHaveLength(32);
  expect(fromBinary(TicketClaimsSchema, ticket.claims)).toMatchObject({ sourceEpoch: 7n, tokenBegin: 0, tokenEnd: 40 });
  expect(isSignedBy(ticket, key)).toBe(true);
  expect(isSignedBy(ticket, new Uint8Array(32).fill(4))).toBe(false);
  const altered = Uint8Array.from(ticket.claims);
  altered[altered.length - 1] = 41;
  expect(isSignedBy({ ...ticket, claims: altered }, key)).toBe(false);
});

test("the mac is plain HMAC-SHA256, as openssl computes it", () => {
  // The claims' bytes are what is signed, so a sidecar in any language checks the same thing.
  const ticket = signTicket({ sourceWorkerId: "w" }, Buffer.from("Jefe"));
  expect(Buffer.from(ticket.claims).toString("hex")).toBe("120177");
  expect(Buffer.from(ticket.mac).toString("hex")).toBe(HMAC_OF_120177);
});

/** `printf '\x12\x01w' | openssl dgst -sha256 -hmac Jefe` */
const HMAC_OF_120177 = "f1a0a672092623bc805b608aa73d8c75f6f0b74d974197d6e07543ba67712ada";
