import { createHmac, timingSafeEqual } from "node:crypto";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { type Ticket, TicketClaimsSchema, TicketSchema } from "@kvasir/proto";

/** Bytes of the key that one incarnation's worker and sidecar share. */
export const TICKET_KEY_BYTES = 32;

/** Serialises the claims and signs exactly those bytes: HMAC-SHA256, 32 bytes. */
export function signTicket(claims: MessageInitShape<typeof TicketClaimsSchema>, key: Uint8Array): Ticket {
  const bytes = toBinary(TicketClaimsSchema, create(TicketClaimsSchema, claims));
  return create(TicketSchema, { claims: bytes, mac: mac(bytes, key) });
}

export function isSignedBy(ticket: Ticket, key: Uint8Array): boolean {
  const expected = mac(ticket.claims, key);
  return ticket.mac.length === expected.length && timingSafeEqual(ticket.mac, expected);
}

function mac(bytes: Uint8Array, key: Uint8Array): Buffer {
  return createHmac("sha256", key).update(bytes).digest();
}
