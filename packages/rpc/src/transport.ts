import { type ChannelCredentials, credentials } from "@grpc/grpc-js";
import type { Identity } from "@kvasir/core";
import { type CertificateFiles, Certificates, type TlsLog } from "./tls/certificates.ts";
import { MutualTlsCredentials } from "./tls/channel-credentials.ts";
import { serversOf } from "./tls/planes.ts";

/** How a process's gRPC connections are made: plain, or with mutual TLS. One for the whole process. */
export interface Transport {
  /** Absent: plain. */
  readonly certificates?: Certificates;
  /** For a channel to `service` at `address`. Unix sockets stay plain: who may open them is the file system's matter. */
  credentialsTo(service: string, address: string): ChannelCredentials;
}

export const PLAIN: Transport = { credentialsTo: () => credentials.createInsecure() };

/** As the flags of a process say: all of them for mutual TLS, none for plain. Throws with what is missing or cannot be used. */
export function transportFrom(
  files: { readonly [K in keyof CertificateFiles]: string | undefined },
  own: Identity,
  log: TlsLog,
): Transport {
  const { ca, cert, key } = files;
  if (ca === undefined && cert === undefined && key === undefined) return PLAIN;
  if (ca === undefined || cert === undefined || key === undefined) {
    throw new Error("mutual TLS takes --tls-ca, --tls-cert and --tls-key together");
  }
  const certificates = new Certificates({ ca, cert, key }, own, log);
  return {
    certificates,
    credentialsTo: (service, address) =>
      address.startsWith("unix:")
        ? credentials.createInsecure()
        : new MutualTlsCredentials(certificates, serversOf(service), address),
  };
}
