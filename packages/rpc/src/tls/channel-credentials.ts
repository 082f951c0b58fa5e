import type { Socket } from "node:net";
import { type ConnectionOptions, connect, type PeerCertificate } from "node:tls";
import { CallCredentials, ChannelCredentials } from "@grpc/grpc-js";
import { identityText, type ProcessRole } from "@kvasir/core";
import type { Certificates } from "./certificates.ts";
import { identityFromCertificate } from "./peer-identity.ts";

const HANDSHAKE_MAX_MS = 5_000;

/** As grpc-js asks for it; its own type is not exported. */
type SecureConnector = ReturnType<ChannelCredentials["_createSecureConnector"]>;

/**
 * Credentials of a channel that shows this process's certificate of now at each connect, and takes only a peer of one of `roles`,
 * whatever its host name: addresses come from membership. (grpc-js's own credentials are fixed when they are made.)
 */
export class MutualTlsCredentials extends ChannelCredentials {
  readonly #certificates: Certificates;
  readonly #roles: readonly ProcessRole[];
  readonly #address: string;

  constructor(certificates: Certificates, roles: readonly ProcessRole[], address: string) {
    super();
    this.#certificates = certificates;
    this.#roles = roles;
    this.#address = address;
  }

  override _isSecure(): boolean {
    return true;
  }

  override _equals(other: ChannelCredentials): boolean {
    return this === other;
  }

  override _createSecureConnector(): SecureConnector {
    const callCredentials = CallCredentials.createEmpty();
    return {
      connect: (socket) => this.#connect(socket),
      waitForReady: () => Promise.resolve(),
      getCallCredentials: () => callCredentials,
      destroy: () => undefined,
    };
  }

  #connect(socket: Socket): ReturnType<SecureConnector["connect"]> {
    const options: ConnectionOptions = {
      socket,
      secureContext: this.#certificates.current().context,
      ALPNProtocols: ["h2"],
      checkServerIdentity: (_host, certificate) => this.#check(certificate),
    };
    return new Promise((resolve, reject) => {
      const secure = connect(options, () => {
        clearTimeout(timer);
        resolve({ socket: secure, secure: true });
      });
      const timer = setTimeout(
        () => secure.destroy(new Error(`no answer in ${HANDSHAKE_MAX_MS} ms`)),
        HANDSHAKE_MAX_MS,
      );
      secure.on("error", (error) => reject(new Error(explained(error, this.#address), { cause: error })));
      secure.once("close", () => {
        clearTimeout(timer);
        reject(new Error(`${this.#address} closed the connection during the TLS handshake`));
      });
    });
  }

  #check(certificate: PeerCertificate): Error | undefined {
    const expected = this.#roles.join(" or ");
    const outcome = identityFromCertificate(certificate);
    if (outcome.kind === "nobody") {
      return new Error(`the peer at ${this.#address} is nobody: ${outcome.message}; expected role ${expected}`);
    }
    const { identity } = outcome;
    if (this.#roles.includes(identity.role)) return undefined;
    return new Error(`the peer at ${this.#address} is ${identityText(identity)}; expected role ${expected}`);
  }
}

function explained(error: NodeJS.ErrnoException, address: string): string {
  if (error.code === "ERR_SSL_WRONG_VERSION_NUMBER" || error.code === "ERR_SSL_PACKET_LENGTH_TOO_LONG") {
    return `the peer at ${address} speaks no TLS; give it --tls-ca, --tls-cert and --tls-key`;
  }
  return `TLS with ${address} failed: ${error.message}`;
}
