import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream } from "node:fs";
import { createInterface } from "node:readline";

/** How a process came to its end. */
export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

const ERRORS_CHARS_MAX = 4_000;

/**
 * One child process whose life hangs on ours: it gets a pipe as stdin, whose end it takes as the order to stop, so that nothing
 * outlives this process however it dies. It leads a process group of its own: a Ctrl-C in the terminal is for us, not for it.
 * Its stderr is appended to `logFile`.
 */
export class Child {
  readonly pid: number;
  readonly exited: Promise<Exit>;
  readonly #process: ChildProcess;
  #errors = "";
  #exit: Exit | undefined;

  constructor(
    command: string,
    args: readonly string[],
    options: {
      readonly logFile: string;
      readonly env: NodeJS.ProcessEnv;
      readonly onLine: (line: string) => void;
    },
  ) {
    this.#process = spawn(command, args, { stdio: ["pipe", "pipe", "pipe"], detached: true, env: options.env });
    this.pid = this.#process.pid ?? 0;
    const log = createWriteStream(options.logFile, { flags: "a" });
    this.#process.stdin?.on("error", () => undefined); // It ended before we did.
    this.#process.stderr?.pipe(log);
    this.#process.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#errors = (this.#errors + text).slice(-ERRORS_CHARS_MAX);
    });
    if (this.#process.stdout) createInterface({ input: this.#process.stdout }).on("line", options.onLine);
    this.exited = new Promise((resolve) => {
      const end = (exit: Exit): void => {
        this.#exit ??= exit;
        resolve(this.#exit);
      };
      this.#process.once("error", (error) => {
        this.#errors += error.message;
        end({ code: 127, signal: null });
      });
      this.#process.once("exit", (code, signal) => end({ code, signal }));
    });
  }

  get exit(): Exit | undefined {
    return this.#exit;
  }

  /** The last lines that it wrote to stderr. */
  errorLines(count = 8): string {
    return this.#errors.trimEnd().split("\n").slice(-count).join("\n");
  }

  signal(signal: NodeJS.Signals): void {
    if (this.#exit === undefined) this.#process.kill(signal);
  }

  /** Asks it to end, waits for `graceMs`, then ends it. */
  async end(graceMs: number): Promise<void> {
    this.signal("SIGTERM");
    const timer = setTimeout(() => this.signal("SIGKILL"), graceMs);
    await this.exited;
    clearTimeout(timer);
    this.#process.stdin?.destroy();
  }
}
