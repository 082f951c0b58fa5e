import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Log } from "../log.ts";

/** A running sidecar, however it was started. */
export interface Sidecar {
  readonly socketPath: string;
  readonly pid: number | undefined;
  /** Resolves, with a line for people, when it is gone. Never rejects. */
  readonly exited: Promise<string>;
  /** Asks it to go by closing its stdin, and kills it if it does not within `graceMs`. */
  stop(graceMs: number): Promise<void>;
}

export interface LaunchFacts {
  readonly epoch: bigint;
  readonly ticketKey: Uint8Array;
}

/** Starts one incarnation; rejects with a line for people when it does not get ready. */
export type LaunchSidecar = (facts: LaunchFacts) => Promise<Sidecar>;

export interface SidecarCommand {
  readonly binary: string;
  readonly role: "prefill" | "decode" | "mixed";
  readonly workerId: string;
  readonly model: string;
  /** One path for each incarnation, short enough for a Unix socket (107 bytes). */
  readonly socketPath: (epoch: bigint) => string;
  readonly transferListen: string;
  readonly advertiseHost: string | undefined;
  /** `auto`, `cpu` or `cuda:N`; absent: the sidecar's own choice. */
  readonly device?: string;
  /** Absent: the sidecar's own choice, on a GPU by the share of its memory. */
  readonly kvBytes?: number | undefined;
  /** Absent: the sidecar's own choice. */
  readonly swapBytes?: number | undefined;
  readonly kvMemoryPercent?: number;
  readonly deterministic?: boolean;
  readonly blockSize: number;
  readonly kvDtype: string;
  readonly shards: number;
  /** `stored`, `f32`, `bf16` or `q8_0`. */
  readonly weights: string;
  readonly threads: number | undefined;
  readonly cpus: string | undefined;
  readonly stepTokenMax: number;
  /** A file, `auto` or `none`; absent: the sidecar's default, `auto`. */
  readonly codecProfile?: string | undefined;
  /** Certificates, the worker's own; absent: KV travels plain. */
  readonly tls?: { readonly [K in "ca" | "cert" | "key"]: string | undefined };
}

/** Launches the binary as a worker's sidecar. */
export function sidecarLauncher(command: SidecarCommand, log: Log): LaunchSidecar {
  return ({ epoch, ticketKey }) =>
    startSidecar(command.binary, args(command, epoch, command.socketPath(epoch)), ticketKey, log);
}

/**
 * Starts the binary and waits until it is ready. The ticket key goes through stdin, which then stays open for the life of this process: when we
 * die, however suddenly, the sidecar reads its end and dies too.
 */
export async function startSidecar(
  binary: string,
  flags: readonly string[],
  ticketKey: Uint8Array,
  log: Log,
): Promise<Sidecar> {
  const child = spawn(binary, flags, { stdio: ["pipe", "pipe", "pipe"] });
  const exited = exitOf(child);
  child.stdin.on("error", () => undefined);
  child.stdin.write(`${Buffer.from(ticketKey).toString("hex")}\n`);
  const lastErrorLine = forwardStderr(child, log);
  const ready = await Promise.race([readyLine(child, log), exited]);
  if (typeof ready === "string") throw new Error(`the sidecar did not start: ${lastErrorLine() || ready}`);
  return {
    ...ready,
    pid: child.pid,
    exited: exited.then((line) => [line, lastErrorLine()].filter(Boolean).join(": ")),
    async stop(graceMs) {
      child.stdin.end();
      const timer = setTimeout(() => child.kill("SIGKILL"), graceMs);
      await exited;
      clearTimeout(timer);
    },
  };
}

function args(command: SidecarCommand, epoch: bigint, socketPath: string): string[] {
  const flags: Record<string, string | number | bigint | undefined> = {
    role: command.role,
    model: command.model,
    socket: socketPath,
    listen: command.transferListen,
    advertise: command.advertiseHost,
    "worker-id": command.workerId,
    epoch,
    device: command.device,
    "kv-bytes": command.kvBytes,
    "swap-bytes": command.swapBytes,
    "kv-memory": command.kvMemoryPercent === undefined ? undefined : command.kvMemoryPercent / 100,
    "block-size": command.blockSize,
    "kv-dtype": command.kvDtype,
    shards: command.shards,
    weights: command.weights,
    threads: command.threads,
    cpus: command.cpus,
    "step-token-max": command.stepTokenMax,
    "codec-profile": command.codecProfile,
    "tls-ca": command.tls?.ca,
    "tls-cert": command.tls?.cert,
    "tls-key": command.tls?.key,
  };
  return ["serve", ...flagsFrom(flags), ...(command.deterministic ? ["--deterministic"] : [])];
}

/** Flags of a command line; those without a value are left out. */
export function flagsFrom(flags: Readonly<Record<string, string | number | bigint | undefined>>): string[] {
  const given = Object.entries(flags).filter(([, value]) => value !== undefined);
  return given.flatMap(([flag, value]) => [`--${flag}`, String(value)]);
}

function exitOf(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => {
    child.once("error", (error) => resolve(`cannot run it: ${error.message}`));
    child.once("exit", (code, signal) => resolve(signal ? `ended by ${signal}` : `exit code ${code}`));
  });
}

function readyLine(child: ChildProcess, log: Log): Promise<{ socketPath: string }> {
  return new Promise((resolve) => {
    if (!child.stdout) return;
    let tenthsLogged = -1;
    createInterface({ input: child.stdout }).on("line", (line) => {
      const event = parseEvent(line);
      if (event === undefined) log.warn({ line }, "sidecar: a line on stdout that is not an event");
      else if (event.event === "ready") {
        resolve({ socketPath: String(event.socket) });
      } else if (event.event === "device") {
        log.info(event, "sidecar: where it computes");
      } else if (event.event === "loading") {
        const tenths = Math.floor((10 * Number(event.done_bytes)) / Math.max(Number(event.total_bytes), 1));
        if (tenths > tenthsLogged) log.info(event, "sidecar: loading weights");
        tenthsLogged = Math.max(tenths, tenthsLogged);
      }
    });
  });
}

function parseEvent(line: string): SidecarEvent | undefined {
  try {
    const value: unknown = JSON.parse(line);
    if (typeof value === "object" && value !== null && "event" in value && typeof value.event === "string") {
      return value as SidecarEvent;
    }
  } catch {
    // Not JSON: reported by the caller.
  }
  return undefined;
}

/** A line of the sidecar's stdout. */
interface SidecarEvent {
  readonly event: string;
  readonly socket?: unknown;
  readonly done_bytes?: unknown;
  readonly total_bytes?: unknown;
}

/** Passes the sidecar's log on as it is, and remembers its last `error: ...` line for our own messages. */
function forwardStderr(child: ChildProcess, log: Log): () => string {
  let last = "";
  if (!child.stderr) return () => last;
  createInterface({ input: child.stderr }).on("line", (line) => {
    if (line.startsWith("error: ")) {
      last = line.slice("error: ".length);
      log.error({ line }, "sidecar");
    } else process.stderr.write(`${line}\n`);
  });
  return () => last;
}
