import { ServerInterceptingCall, type ServerInterceptor } from "@grpc/grpc-js";
import { type Identity, identityText, KvasirError } from "@kvasir/core";
import { statusFromError } from "../errors.ts";
import { identityFromCertificate, type PeerOutcome } from "./peer-identity.ts";
import { callersOf } from "./planes.ts";

/** What a call tells of the connection it came by. */
export interface AuthenticatedCall {
  getAuthContext(): { readonly sslPeerCertificate?: { readonly subjectaltname?: string } };
}

/** Refuses calls, before anything of them is read, whose caller's certificate is not of a role that may make them. */
export const refuseStrangers: ServerInterceptor = (method, call) =>
  new ServerInterceptingCall(call, {
    start: (next) =>
      next({
        onReceiveMetadata(metadata, pass) {
          const refusal = refusalOf(method.path, peerOf(call));
          if (refusal) call.sendStatus(statusFromError(refusal));
          else pass(metadata);
        },
      }),
  });

/** Who calls; undefined when this process takes plain connections and knows nobody. */
export function callerOf(call: AuthenticatedCall): Identity | undefined {
  const outcome = peerOf(call);
  return outcome.kind === "identity" ? outcome.identity : undefined;
}

/** grpc-js gives a certificate only if it was verified. */
function peerOf(call: AuthenticatedCall): PeerOutcome {
  const certificate = call.getAuthContext().sslPeerCertificate;
  if (certificate !== undefined) return identityFromCertificate(certificate as { subjectaltname: string });
  const message =
    "this process takes mutual TLS only, and the caller speaks plain or has no certificate that is valid here; give the caller --tls-ca, --tls-cert and --tls-key";
  return { kind: "nobody", message };
}

function refusalOf(path: string, peer: PeerOutcome): KvasirError | undefined {
  const expected = callersOf(path);
  if (peer.kind === "nobody") return new KvasirError({ reason: "permission_denied", message: peer.message });
  if (expected.includes(peer.identity.role)) return undefined;
  const message = `${path} is for role ${expected.join(" or ") || "nobody"}; the caller is ${identityText(peer.identity)}`;
  return new KvasirError({ reason: "permission_denied", message });
}
