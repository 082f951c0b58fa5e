import { readFileSync } from "node:fs";

/** Linux reports process times in ticks of 1/100 s, whatever the kernel's own tick. */
const MS_PER_TICK = 10;

/** User plus system time that a process has used, in milliseconds. */
export function cpuTimeMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  // The command name may hold spaces and parentheses: fields are counted from its end.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * MS_PER_TICK;
}
