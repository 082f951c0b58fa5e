import { Child } from "./child.ts";

/**
 * A program that watches no stdin is started by a shell that does: it says the program's process id, ends the program at the end of
 * stdin, and itself ends with the program.
 */
const GUARD = `exec 3<&0
"$@" </dev/null 3<&- & pid=$!
echo "$pid"
{ cat <&3 >/dev/null; kill -9 "$pid"; } >/dev/null 2>&1 & watcher=$!
exec 3<&-
trap 'kill "$pid"' TERM
wait "$pid"; wait "$pid"; kill "$watcher" 2>/dev/null; exit 0`;

export interface GuardedChild {
  readonly child: Child;
  /** Of the program itself; 0 until the shell has told it. */
  readonly pid: number;
}

/** Starts somebody else's program so that it never outlives this process. Its own stdout, after the first line, is not kept. */
export function startGuarded(
  binary: string,
  flags: readonly string[],
  options: { readonly logFile: string; readonly env?: NodeJS.ProcessEnv },
): GuardedChild {
  let pid = 0;
  const child = new Child("/bin/sh", ["-c", GUARD, "sh", binary, ...flags], {
    logFile: options.logFile,
    env: options.env ?? process.env,
    onLine: (line) => {
      if (pid === 0) pid = Number(line);
    },
  });
  return {
    child,
    get pid() {
      return pid;
    },
  };
}
