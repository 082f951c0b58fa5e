import type { Loaded } from "./kv-load.ts";
import { median, percentile, table } from "./report.ts";

/** How one way of loading did on one trace, request by request. */
export interface Arm {
  readonly name: string;
  readonly isAdaptive: boolean;
  readonly loads: readonly Loaded[];
}

export interface MissesFacts {
  readonly objectiveMs: number;
  readonly contextTokens: number;
  /** Of each level. */
  readonly kls: readonly number[];
}

/** A table of arms, and which of them misses least, request by request. */
export function missesSection(arms: readonly Arm[], facts: MissesFacts): string {
  const header = [
    "",
    `misses ${facts.objectiveMs} ms`,
    "median ms",
    "p90 ms",
    "MB sent",
    "computed",
    "KL of what came",
  ];
  return `${table(
    header,
    arms.map((arm) => rowOf(arm, facts)),
  )}

${verdict(arms, facts.objectiveMs)}`;
}

/** One line while it runs. */
export function rowOf({ name, loads }: Arm, { objectiveMs, contextTokens, kls }: MissesFacts): string[] {
  const times = loads.map(({ ms }) => ms);
  const mean = (of: (one: Loaded) => number) => loads.reduce((sum, one) => sum + of(one), 0) / loads.length;
  const kl = mean(({ tokensByLevel }) =>
    [...tokensByLevel].reduce((sum, [level, tokens]) => sum + ((kls[level] ?? 0) * tokens) / contextTokens, 0),
  );
  return [
    name,
    `${((100 * missesOf(loads, objectiveMs).size) / loads.length).toFixed(0)} %`,
    median(times).toFixed(0),
    percentile(times, 90).toFixed(0),
    mean(({ wireBytes }) => wireBytes / 1e6).toFixed(1),
    `${((100 * mean(({ computedTokenCount }) => computedTokenCount)) / contextTokens).toFixed(0)} %`,
    kl.toFixed(4),
  ];
}

function missesOf(loads: readonly Loaded[], objectiveMs: number): ReadonlySet<number> {
  return new Set(loads.flatMap(({ ms }, request) => (ms > objectiveMs ? [request] : [])));
}

function verdict(arms: readonly Arm[], objectiveMs: number): string {
  const fewest = (some: readonly Arm[]) => Math.min(...some.map(({ loads }) => missesOf(loads, objectiveMs).size));
  const fixed = arms.filter(({ isAdaptive }) => !isAdaptive);
  const least = fewest(fixed);
  const best = fixed.filter(({ loads }) => missesOf(loads, objectiveMs).size === least);
  const lines = arms
    .filter(({ isAdaptive }) => isAdaptive)
    .map(({ name, loads }) => {
      const own = missesOf(loads, objectiveMs);
      const how = own.size < least ? "fewer than" : own.size === least ? "as many as" : "more than";
      return `${name} misses ${own.size} of ${loads.length}, ${how} the best fixed choice${own.size > 0 && least > 0 ? pairs(own, best[0] as Arm, objectiveMs) : ""}`;
    });
  return `Fewest misses of a fixed choice: ${least} of ${fixed[0]?.loads.length ?? 0} (${best.map(({ name }) => name).join(", ")}). ${lines.join("; ")}.`;
}

function pairs(own: ReadonlySet<number>, other: Arm, objectiveMs: number): string {
  const others = missesOf(other.loads, objectiveMs);
  const alone = [...own].filter((request) => !others.has(request)).length;
  const spared = [...others].filter((request) => !own.has(request)).length;
  return ` (of the same requests ${spared} that only it meets and ${alone} that only ${other.name} meets)`;
}
