import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const REPOSITORY = join(dirname(fileURLToPath(import.meta.url)), "../../..");

/** What a reader must know to weigh a figure. */
export function machineLine(): string {
  const processors = cpus();
  const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { cwd: REPOSITORY, encoding: "utf8" }).trim();
  const date = new Date().toISOString().slice(0, 10);
  const gib = Math.round(totalmem() / 2 ** 30);
  return `${date}, commit ${commit}, ${processors.length} × ${processors[0]?.model.trim() ?? "unknown CPU"}, ${gib} GiB. A shared, noisy machine: trust ratios within one run more than absolute figures.`;
}

/** A Markdown table whose columns line up in a terminal too. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)));
  const line = (cells: readonly string[]) =>
    `| ${widths.map((width, i) => (cells[i] ?? "").padEnd(width)).join(" | ")} |`;
  return [line(header), `|${widths.map((width) => "-".repeat(width + 2)).join("|")}|`, ...rows.map(line)].join("\n");
}

/** Where a page's figures end and what a person made of them begins. */
const READING = "\n## What decides\n";

/**
 * Prints the report and, with `--write`, keeps it as `docs/results/NAME.md`; what people wrote below it there stays, to be read again. `command`
 * is what follows `npm run bench --`.
 */
export function publish(name: string, title: string, body: string, command: string = name): void {
  const text = `# ${title}\n\n\`npm run bench -- ${command}\` · ${machineLine()}\n\n${body.trim()}\n`;
  process.stdout.write(`\n${text}\n`);
  if (!process.argv.includes("--write")) return;
  const path = join(REPOSITORY, "docs", "results", `${name}.md`);
  mkdirSync(dirname(path), { recursive: true });
  const before = existsSync(path) ? readFileSync(path, "utf8") : "";
  const reading = before.indexOf(READING);
  writeFileSync(path, reading < 0 ? text : `${text}${before.slice(reading)}`);
  process.stdout.write(`written to docs/results/${name}.md\n`);
}

export function median(values: readonly number[]): number {
  return percentile(values, 50);
}

/** Nearest-rank percentile; NaN of nothing. */
export function percentile(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? Number.NaN;
}

export function option(name: string, fallback: string): string {
  const index = process.argv.indexOf(`--${name}`);
  return index >= 0 ? (process.argv[index + 1] ?? fallback) : fallback;
}
