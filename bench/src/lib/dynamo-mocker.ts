import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Trace } from "@kvasir/sim";
import { REPOSITORY } from "./report.ts";

/** Workers that do both phases, or some of each kind. */
export type MockerCluster = { readonly mixed: number } | { readonly prefill: number; readonly decode: number };

/** TTFT, mean gap between tokens (milliseconds), tokens, and tokens of the prompt that were reused. */
export type MockerRequest = readonly [ttftMs: number, gapMs: number, tokens: number, reused: number];

export interface MockerRun {
  readonly wallS: number;
  readonly cpuS: number;
  readonly requests: readonly MockerRequest[];
}

const PYTHON = join(REPOSITORY, ".cache", "dynamo", "bin", "python");
/** Tokens of a block in the files that the mocker reads. */
const BLOCK = 512;

/** NVIDIA Dynamo's own simulator behind its KV router, on a trace `speed` times as fast; undefined where it is not installed. */
export function mockerReplay(
  trace: Trace,
  cluster: MockerCluster,
  speed: number,
  wantsRequests: boolean,
): MockerRun | undefined {
  if (!existsSync(PYTHON)) return undefined;
  const folder = mkdtempSync(join(tmpdir(), "kvasir-trace-"));
  try {
    const path = join(folder, "trace.jsonl");
    writeFileSync(path, mooncakeLines(trace));
    const workers = Object.entries("mixed" in cluster ? { workers: cluster.mixed } : cluster).flatMap(
      ([name, count]) => [`--${name}`, String(count)],
    );
    const flags = ["--trace", path, "--speed", String(speed), ...workers, ...(wantsRequests ? ["--requests"] : [])];
    const output = execFileSync(PYTHON, [join(REPOSITORY, "bench/baselines/mocker_replay.py"), ...flags], {
      encoding: "utf8",
      maxBuffer: 1 << 28,
      env: { ...process.env, DYN_LOG: "error" },
    });
    return JSON.parse(output.trim().split("\n").at(-1) ?? "") as MockerRun;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The trace in Mooncake's format; prompts that share nothing get ids of their own. */
export function mooncakeLines(trace: Trace): string {
  let nextId = 1 + trace.requests.reduce((most, { prefixIds }) => Math.max(most, ...prefixIds.slice(-1)), 0);
  const lines = trace.requests.map(({ arrivalMs, promptTokenCount, outputTokenCount, prefixIds }) => {
    const count = Math.ceil(promptTokenCount / BLOCK);
    const ids = prefixIds.length === count ? prefixIds : Array.from({ length: count }, () => nextId++);
    const row = { timestamp: Math.round(arrivalMs), input_length: promptTokenCount, output_length: outputTokenCount };
    return JSON.stringify({ ...row, hash_ids: ids });
  });
  return `${lines.join("\n")}\n`;
}
