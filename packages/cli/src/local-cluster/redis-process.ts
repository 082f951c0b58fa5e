import { connect, createServer } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import { contentsOf, type IssuedFiles } from "./certificates.ts";
import type { Child } from "./child.ts";
import { startGuarded } from "./guarded-child.ts";

const START_MAX_MS = 10_000;

/** A Redis of our own: nothing on disk, loopback only. */
export interface RedisProcess {
  readonly url: string;
  readonly port: number;
  readonly child: Child;
  /** Of redis-server itself. */
  readonly pid: number;
}

/** Starts `binary` on `port` and waits until it answers. */
export async function startRedis(
  binary: string,
  port: number,
  logFile: string,
  tls?: IssuedFiles,
): Promise<RedisProcess> {
  const ports = tls === undefined ? ["--port", `${port}`] : tlsPorts(port, tls);
  const flags = [...ports, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
  const redis = startGuarded(binary, [...flags, "--loglevel", "warning"], { logFile });
  const { child } = redis;
  const deadline = performance.now() + START_MAX_MS;
  while (redis.pid === 0 || !(await answersPing(port, tls))) {
    if (child.exit !== undefined) {
      const hint =
        tls === undefined
          ? ""
          : "; one built without TLS cannot be used: give another by KVASIR_REDIS_SERVER or REDIS_URL";
      throw new Error(`${binary} ended at once: ${child.errorLines(2)} (log: ${logFile})${hint}`);
    }
    if (performance.now() > deadline) {
      await child.end(0);
      throw new Error(`${binary} did not answer on port ${port} in ${START_MAX_MS / 1000} s (log: ${logFile})`);
    }
    await delay(20);
  }
  return { url: `${tls ? "rediss" : "redis"}://127.0.0.1:${port}`, port, child, pid: redis.pid };
}

/** A TCP port that was free a moment ago. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}

function tlsPorts(port: number, { ca, cert, key }: IssuedFiles): string[] {
  const files = ["--tls-ca-cert-file", ca, "--tls-cert-file", cert, "--tls-key-file", key];
  return ["--port", "0", "--tls-port", `${port}`, ...files, "--tls-auth-clients", "yes"];
}

function answersPing(port: number, tls: IssuedFiles | undefined): Promise<boolean> {
  return new Promise((resolve) => {
    const to = { host: "127.0.0.1", port, timeout: 500 };
    const socket = tls === undefined ? connect(to) : connectTls({ ...to, ...contentsOf(tls) });
    const end = (answer: boolean): void => {
      socket.destroy();
      resolve(answer);
    };
    socket.on(tls === undefined ? "connect" : "secureConnect", () => socket.write("PING\r\n"));
    socket.on("data", (data) => end(data.toString().startsWith("+PONG")));
    for (const event of ["error", "timeout", "close"]) socket.on(event, () => end(false));
  });
}
