import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Item } from "./item.ts";
import type { Line } from "./summary.ts";

export interface QualityRun {
  readonly sidecar: string;
  readonly model: string;
  readonly items: readonly Item[];
  /** Empty: all. */
  readonly methods: readonly string[];
  readonly kvDtype: string;
  readonly weights: string;
  readonly threads: number;
  /** Told after each question. */
  readonly progress?: (done: number, total: number) => void;
}

/** Runs the sidecar's `quality` command over items; every method on every item. */
export async function runQuality(run: QualityRun): Promise<Line[]> {
  const folder = mkdtempSync(join(tmpdir(), "kvasir-quality-"));
  try {
    const itemsFile = join(folder, "items.jsonl");
    writeFileSync(itemsFile, run.items.map((item) => `${JSON.stringify(item)}\n`).join(""));
    const engine = [
      "--model",
      run.model,
      "--kv-dtype",
      run.kvDtype,
      "--weights",
      run.weights,
      "--threads",
      `${run.threads}`,
    ];
    const flags = ["quality", ...engine, "--kv-bytes", "1GiB", "--items", itemsFile];
    if (run.methods.length > 0) flags.push("--methods", run.methods.join());
    const child = spawn(run.sidecar, flags, { stdio: ["ignore", "pipe", "pipe"] });
    let errors = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      errors = (errors + text).slice(-2_000);
    });
    const ended = new Promise<number | null>((resolve, reject) => {
      child.on("error", reject);
      child.on("close", resolve);
    });
    const lines: Line[] = [];
    const seen = new Set<string>();
    for await (const text of createInterface({ input: child.stdout })) {
      const line = JSON.parse(text) as Line;
      lines.push(line);
      if (!seen.has(line.id)) run.progress?.(seen.add(line.id).size, run.items.length);
    }
    const code = await ended;
    if (code !== 0) throw new Error(`kvasir-sidecar quality ended with code ${code}: ${errors.trim()}`);
    return lines;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
