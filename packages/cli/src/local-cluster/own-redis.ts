import type { IssuedFiles } from "./certificates.ts";
import type { Exit } from "./child.ts";
import { freePort, type RedisProcess, startRedis } from "./redis-process.ts";
import type { ProcessHandle } from "./service-process.ts";

/** The Redis of a local cluster. A restart keeps its port and starts empty. */
export class OwnRedis implements ProcessHandle {
  readonly name = "redis";
  readonly kind = "redis";
  readonly adminAddress = undefined;
  readonly grpcAddress = undefined;
  readonly httpAddress = undefined;
  readonly sidecarPid = undefined;
  readonly #logFile: string;
  readonly #tls: IssuedFiles | undefined;
  readonly #onExit: (exit: Exit, errors: string) => void;
  #redis: RedisProcess | undefined;
  #isEndExpected = false;

  /** With `tls` it takes mutual TLS only. */
  constructor(logFile: string, tls: IssuedFiles | undefined, onExit: (exit: Exit, errors: string) => void) {
    this.#logFile = logFile;
    this.#tls = tls;
    this.#onExit = onExit;
  }

  get url(): string {
    return this.#redis?.url ?? "";
  }
  get pid(): number {
    return this.#redis?.pid ?? 0;
  }
  get isRunning(): boolean {
    return this.#redis !== undefined && this.#redis.child.exit === undefined;
  }

  async start(): Promise<void> {
    this.#isEndExpected = false;
    const port = this.#redis?.port ?? (await freePort());
    const redis = await startRedis(process.env.KVASIR_REDIS_SERVER || "redis-server", port, this.#logFile, this.#tls);
    this.#redis = redis;
    void redis.child.exited.then((exit) => {
      if (!this.#isEndExpected) this.#onExit(exit, redis.child.errorLines());
    });
  }

  async kill(signal: NodeJS.Signals): Promise<void> {
    if (!this.isRunning) return;
    process.kill(this.pid, signal);
    await this.#redis?.child.exited;
  }

  async restart(): Promise<void> {
    if (this.isRunning) await this.stop();
    await this.start();
  }

  async stop(): Promise<void> {
    this.#isEndExpected = true;
    if (this.isRunning) process.kill(this.pid, "SIGTERM");
    await this.#redis?.child.end(3_000);
  }
}
