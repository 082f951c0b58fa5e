import { readdirSync, readFileSync } from "node:fs";

/** Process ids of the direct children of `pid`, from /proc; empty where there is none. */
export function childrenOf(pid: number): number[] {
  let entries: string[];
  try {
    entries = readdirSync("/proc");
  } catch {
    return [];
  }
  return entries.filter((entry) => /^\d+$/.test(entry) && parentOf(entry) === pid).map(Number);
}

/** The child of `pid` that runs the program `name`. */
export function childNamed(pid: number, name: string): number | undefined {
  return childrenOf(pid).find((child) => programOf(child) === name);
}

/** Whether `pid` runs: one that ended and was not waited for (a zombie) does not. */
export function isRunning(pid: number): boolean {
  try {
    return statFields(`${pid}`)[0] !== "Z";
  } catch {
    return false;
  }
}

function parentOf(pid: string): number | undefined {
  try {
    return Number(statFields(pid)[1]);
  } catch {
    return undefined; // It ended meanwhile.
  }
}

/** The fields after the program's name, which stands in parentheses and may hold anything: state, parent, … */
function statFields(pid: string): string[] {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}

function programOf(pid: number): string {
  try {
    const path = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0")[0] ?? "";
    return path.slice(path.lastIndexOf("/") + 1);
  } catch {
    return "";
  }
}
