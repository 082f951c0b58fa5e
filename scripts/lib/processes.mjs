import { spawn } from "node:child_process";
import { accessSync, constants, statSync } from "node:fs";
import { delimiter, join } from "node:path";

const TAIL_CHARS = 6_000;

/**
 * Runs a command to its end. Answers with `{ code, output }`, `output` being the last few thousand characters of stdout and stderr;
 * never throws for an exit code. `onLine` sees each line as it comes. A command that cannot be started has code 127.
 */
export function run(command, args, { cwd, env, onLine } = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd, env: env ?? process.env, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      let rest = "";
      stream.setEncoding("utf8").on("data", (text) => {
        output = (output + text).slice(-TAIL_CHARS);
        const lines = (rest + text).split(/\r?\n|\r/);
        rest = lines.pop() ?? "";
        if (onLine) for (const line of lines) onLine(line);
      });
      stream.on("end", () => rest !== "" && onLine?.(rest));
    }
    child.on("error", (error) => resolve({ code: 127, output: error.message }));
    child.on("close", (code) => resolve({ code: code ?? 1, output: output.trim() }));
  });
}

/**
 * Hands the terminal to a command until it ends and answers with its exit code. Signals are passed on, and this process waits for the
 * command to follow them: at a Ctrl-C it may get SIGINT from the terminal, from npm and from here, which it has to take as one.
 */
export function handOver(command, args, { cwd, env } = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd, env: env ?? process.env, stdio: "inherit" });
    const pass = (signal) => child.kill(signal);
    process.on("SIGINT", pass);
    process.on("SIGTERM", pass);
    process.on("SIGHUP", pass);
    child.on("error", (error) => {
      process.stderr.write(`${command}: ${error.message}\n`);
      resolve(127);
    });
    child.on("exit", (code) => {
      process.off("SIGINT", pass);
      process.off("SIGTERM", pass);
      process.off("SIGHUP", pass);
      resolve(code ?? 1);
    });
  });
}

/** The path of a program on the PATH (or in `folders`, looked at first), undefined if there is none. */
export function findProgram(name, folders = []) {
  for (const folder of [...folders, ...(process.env.PATH ?? "").split(delimiter)]) {
    if (folder === "") continue;
    const path = join(folder, name);
    try {
      accessSync(path, constants.X_OK);
      if (statSync(path).isFile()) return path;
    } catch {
      // Not here: look on.
    }
  }
  return undefined;
}
