import { createServer as createTcpServer, type Socket } from "node:net";
import { createServer as createTlsServer, type TLSSocket } from "node:tls";
import type { Certificates } from "./certificates.ts";

const HANDSHAKE_MAX_MS = 5_000;
/** A peer without a valid certificate is told so, and has this long to read it. */
const REFUSED_LIFE_MS = 2_000;
/** First byte of a TLS connection: a handshake record. */
const TLS_HANDSHAKE = 0x16;

export interface SecureListener {
  /** The port bound. */
  readonly port: number;
  /** Takes no more connections. */
  close(): void;
}

/**
 * Listens with mutual TLS and gives each connection to `take`, with the certificates of now. One that is plain, or whose certificate is
 * not valid, is given as well, for a short life: its calls are refused with a reason that its owner can read, where a cut would say nothing.
 */
export async function listenSecurely(
  host: string,
  port: number,
  certificates: Certificates,
  take: (connection: Socket) => void,
): Promise<SecureListener> {
  const { log } = certificates;
  let used = certificates.current();
  const tls = createTlsServer({
    ...used.options,
    requestCert: true,
    rejectUnauthorized: false,
    ALPNProtocols: ["h2"],
    handshakeTimeout: HANDSHAKE_MAX_MS,
  });
  const refuse = (socket: Socket, why: string) => {
    log.warn({ peer: `${socket.remoteAddress}:${socket.remotePort}` }, `a connection is refused: ${why}`);
    const cut = setTimeout(() => socket.destroy(), REFUSED_LIFE_MS);
    socket.once("close", () => clearTimeout(cut));
    take(socket);
  };
  tls.on("secureConnection", (socket: TLSSocket) => {
    socket.on("error", () => undefined);
    if (socket.authorized) take(socket);
    else refuse(socket, `its certificate is not valid here: ${socket.authorizationError ?? "none was shown"}`);
  });
  tls.on("tlsClientError", (error, socket) => {
    log.warn({ peer: `${socket.remoteAddress}:${socket.remotePort}` }, `a TLS handshake failed: ${error.message}`);
    socket.destroy();
  });

  const tcp = createTcpServer({ noDelay: true }, (socket) => {
    const forget = () => socket.destroy();
    socket.on("error", forget);
    socket.setTimeout(HANDSHAKE_MAX_MS, forget);
    socket.once("data", (first: Buffer) => {
      socket.pause();
      socket.setTimeout(0);
      socket.off("timeout", forget);
      socket.unshift(first);
      if (first[0] !== TLS_HANDSHAKE) return refuse(socket, "it speaks plain; this process takes mutual TLS only");
      const current = certificates.current();
      if (current !== used) tls.setSecureContext(current.options);
      used = current;
      tls.emit("connection", socket);
    });
  });
  await new Promise<void>((resolve, reject) => {
    tcp.once("error", reject);
    tcp.listen({ host, port }, () => {
      tcp.off("error", reject);
      tcp.on("error", (error) => log.warn({ error: error.message }, "a connection could not be accepted"));
      resolve();
    });
  });
  const bound = tcp.address();
  return {
    port: typeof bound === "object" && bound ? bound.port : port,
    close: () => {
      tcp.close();
    },
  };
}
