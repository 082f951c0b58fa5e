import { Child, type Exit } from "./child.ts";
import { childNamed } from "./process-tree.ts";

export type ProcessKind = "redis" | "router" | "gateway" | "prefill" | "decode" | "mixed" | "store";

/** One process of a local cluster. Its addresses stay the same over restarts as far as others were told them. */
export interface ProcessHandle {
  readonly name: string;
  readonly kind: ProcessKind;
  /** Of the current incarnation. */
  readonly pid: number;
  readonly isRunning: boolean;
  /** host:port, of services. */
  readonly adminAddress: string | undefined;
  readonly grpcAddress: string | undefined;
  readonly httpAddress: string | undefined;
  /** Of a worker or a store, looked up now. */
  readonly sidecarPid: number | undefined;
  /** Sends the signal and waits until the process is gone. */
  kill(signal: NodeJS.Signals): Promise<void>;
  /** Starts it again after its end, and waits until it is ready. */
  restart(): Promise<void>;
}

export interface ServiceCommand {
  readonly name: string;
  readonly kind: ProcessKind;
  readonly node: string;
  /** The main of the service and its flags; `httpAddress` is where it listened before, undefined at its first start. */
  readonly args: (httpAddress: string | undefined) => readonly string[];
  readonly env: NodeJS.ProcessEnv;
  readonly logFile: string;
  readonly readyMaxMs: number;
}

interface Ready {
  readonly grpc?: string;
  readonly admin?: string;
  readonly http?: string;
}

/** A service of ours: it says when it is ready in one JSON line, and ends when its stdin does. */
export class ServiceProcess implements ProcessHandle {
  readonly #command: ServiceCommand;
  readonly #onExit: (handle: ServiceProcess, exit: Exit, errors: string) => void;
  #child: Child | undefined;
  #ready: Ready = {};
  #isEndExpected = false;

  constructor(command: ServiceCommand, onExit: (handle: ServiceProcess, exit: Exit, errors: string) => void) {
    this.#command = command;
    this.#onExit = onExit;
  }

  get name(): string {
    return this.#command.name;
  }
  get kind(): ProcessKind {
    return this.#command.kind;
  }
  get pid(): number {
    return this.#child?.pid ?? 0;
  }
  get isRunning(): boolean {
    return this.#child !== undefined && this.#child.exit === undefined;
  }
  get adminAddress(): string | undefined {
    return this.#ready.admin;
  }
  get grpcAddress(): string | undefined {
    return this.#ready.grpc;
  }
  get httpAddress(): string | undefined {
    return this.#ready.http;
  }
  get sidecarPid(): number | undefined {
    return childNamed(this.pid, "kvasir-sidecar");
  }

  /** Starts it and waits for its ready line. Rejects with the end of its stderr when it ends or takes too long. */
  async start(): Promise<void> {
    const { name, node, args, env, logFile, readyMaxMs } = this.#command;
    const ready = Promise.withResolvers<Ready>();
    this.#isEndExpected = false;
    const child = new Child(node, args(this.#ready.http), {
      logFile,
      env,
      onLine: (line) => {
        const event = readyFromLine(line);
        if (event) ready.resolve(event);
      },
    });
    this.#child = child;
    let isReady = false;
    const timer = setTimeout(() => {
      child.signal("SIGKILL");
      ready.reject(
        new Error(`${name} was not ready in ${readyMaxMs / 1000} s (log: ${logFile}): ${child.errorLines()}`),
      );
    }, readyMaxMs);
    void child.exited.then((exit) => {
      const errors = child.errorLines();
      ready.reject(
        new Error(this.#isEndExpected ? `${name} was stopped` : `${name} ended before it was ready: ${errors}`),
      );
      if (isReady && !this.#isEndExpected) this.#onExit(this, exit, errors);
    });
    try {
      this.#ready = await ready.promise;
      isReady = true;
    } finally {
      clearTimeout(timer);
    }
  }

  async kill(signal: NodeJS.Signals): Promise<void> {
    this.#child?.signal(signal);
    await this.#child?.exited;
  }

  async restart(): Promise<void> {
    if (this.isRunning) await this.stop(5_000);
    await this.start();
  }

  async stop(graceMs: number): Promise<void> {
    this.#isEndExpected = true;
    await this.#child?.end(graceMs);
  }
}

function readyFromLine(line: string): Ready | undefined {
  try {
    const value = JSON.parse(line) as Readonly<Record<string, unknown>> | null;
    if (value?.event !== "ready") return undefined;
    const text = (key: string) => (typeof value[key] === "string" ? { [key]: value[key] } : {});
    return { ...text("grpc"), ...text("admin"), ...text("http") };
  } catch {
    return undefined; // Not for us.
  }
}
