import type { PeerCertificate } from "node:tls";
import { type Identity, identityFromUri } from "@kvasir/core";

export type PeerOutcome =
  | { readonly kind: "identity"; readonly identity: Identity }
  | { readonly kind: "nobody"; readonly message: string };

/** Who a verified certificate is of: it has exactly one URI name, `spiffe://kvasir/ROLE/ID`. */
export function identityFromCertificate(certificate: Pick<PeerCertificate, "subjectaltname">): PeerOutcome {
  const names = certificate.subjectaltname ?? "";
  // Node quotes names that hold separators; none of ours does, and a quoted one could look like two.
  const uris = names.includes('"') ? [] : names.split(", ").filter((name) => name.startsWith("URI:"));
  const identity = uris.length === 1 ? identityFromUri((uris[0] ?? "").slice("URI:".length)) : undefined;
  if (identity !== undefined) return { kind: "identity", identity };
  return { kind: "nobody", message: `its names are ${names || "none"}; it must have one URI spiffe://kvasir/ROLE/ID` };
}
