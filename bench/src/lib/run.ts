import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { REPOSITORY } from "./report.ts";

/** The release binary, where `npm run bench` built it. */
export const SIDECAR = join(
  process.env.CARGO_TARGET_DIR ?? join(REPOSITORY, "services", "sidecar", "target"),
  "release",
  "kvasir-sidecar",
);

/** Runs a program to its end and answers with its stdout; what it says on stderr is shown when it fails. */
export function output(
  command: string,
  args: readonly string[],
  onLine?: (line: string) => void,
  env: NodeJS.ProcessEnv = process.env,
): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env });
    let text = "";
    let errors = "";
    child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      for (const line of chunk.split("\n")) if (line !== "") onLine?.(line);
    });
    child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
      errors = (errors + chunk).slice(-4_000);
    });
    child.on("error", reject);
    child.on("exit", (code) =>
      code === 0 ? resolve(text) : reject(new Error(`${command} ended with ${code}: ${errors}`)),
    );
  });
}

/** Starts a program, tells it `input`, and answers with its first line of stdout that holds `until`; it ends with our stdin pipe. */
export function startUntilLine(
  command: string,
  args: readonly string[],
  options: { env?: NodeJS.ProcessEnv; showErrors?: boolean; input?: string; until?: string } = {},
): Promise<{ line: string; child: ChildProcess }> {
  const { env = process.env, showErrors = true, input = "", until = "" } = options;
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["pipe", "pipe", showErrors ? "inherit" : "ignore"], env });
    let text = "";
    child.stdin.write(input);
    child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      const lines = text.split("\n");
      text = lines.pop() ?? "";
      const line = lines.find((line) => line.includes(until));
      if (line !== undefined) resolve({ line, child });
    });
    child.on("error", reject);
    child.on("exit", (code) => reject(new Error(`${command} ended with ${code} before it said anything`)));
  });
}
