import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { REPOSITORY } from "./report.ts";

export interface Service {
  readonly pid: number;
  /** The fields of the service's ready line: `grpc`, `admin`, `http`, as far as it has them. */
  readonly ready: Readonly<Record<string, string>>;
  stop(): Promise<void>;
}

/** Starts one service by its own main and waits for its ready line. */
export function startService(main: string, flags: readonly string[]): Promise<Service> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [join(REPOSITORY, main), ...flags, "--parent-watch"], {
      stdio: ["pipe", "pipe", "pipe"],
    });
    let errors = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      errors = (errors + text).slice(-4_000);
    });
    const exited = new Promise<void>((done) => child.once("exit", () => done()));
    child.once("exit", (code) => reject(new Error(`${main} ended with code ${code} before it was ready:\n${errors}`)));
    child.once("error", reject);
    createInterface({ input: child.stdout }).on("line", (line) => {
      const event = parse(line);
      if (event?.event !== "ready" || child.pid === undefined) return;
      resolve({
        pid: child.pid,
        ready: event,
        stop: () => {
          child.kill("SIGTERM");
          return exited;
        },
      });
    });
  });
}

function parse(line: string): Record<string, string> | undefined {
  try {
    return JSON.parse(line) as Record<string, string>;
  } catch {
    return undefined;
  }
}
