import { existsSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { resolveModel } from "@kvasir/models";
import { option, publish, REPOSITORY, table } from "./lib/report.ts";
import { output, SIDECAR } from "./lib/run.ts";

// Decode and prefill speed on one GGUF file beside what a user would otherwise run: llama.cpp and PyTorch eager, the same threads, one after
// the other in the same run.
interface Rate {
  readonly engine: string;
  readonly phase: "decode" | "prefill";
  readonly size: number;
  readonly tokensPerSecond: number;
}

interface OwnReport {
  readonly device: string;
  readonly weight_bytes_per_step: number;
  readonly decode: readonly { size: number; tokens_per_second: number }[];
  readonly prefill: readonly { size: number; tokens_per_second: number }[];
}

const threads = option("threads", String(cpus().length));
const batches = option("batches", "1,8,32");
const prompts = option("prompts", "512,2048");
const context = option("context", "512");
const engines = option("engines", "llama.cpp,pytorch");
const say = (line: string) => process.stderr.write(`${line}\n`);

const model = await resolveModel(option("model", "smollm2"), join(REPOSITORY, ".cache"), say);
const gguf = join(model.directory, "model.gguf");
const rates: Rate[] = [];

say("measuring Kvasir");
const common = ["--batches", batches, "--prompts", prompts, "--context", context];
const own = JSON.parse(
  await output(SIDECAR, [
    "bench-engine",
    "--model",
    model.directory,
    "--threads",
    threads,
    "--kv-bytes",
    "2GiB",
    ...common,
  ]),
) as OwnReport;
for (const phase of ["decode", "prefill"] as const) {
  for (const entry of own[phase])
    rates.push({ engine: "Kvasir", phase, size: entry.size, tokensPerSecond: entry.tokens_per_second });
}

const python = join(REPOSITORY, ".cache", "python", "bin", "python");
if (existsSync(python) && engines !== "none") {
  const script = join(REPOSITORY, "bench", "baselines", "engines.py");
  const text = await output(
    python,
    [script, "--gguf", gguf, "--threads", threads, ...common, "--engines", engines],
    (line) => say(line),
  );
  for (const line of text.trim().split("\n")) {
    const { engine, phase, batch, tokens, tokens_per_second } = JSON.parse(line);
    rates.push({ engine, phase, size: batch ?? tokens, tokensPerSecond: tokens_per_second });
  }
} else {
  say(
    "no baselines: they were switched off, or their Python environment is missing (npm run bench -- engine makes it)",
  );
}

const rate = (engine: string, phase: string, size: number) =>
  rates.find((entry) => entry.engine === engine && entry.phase === phase && entry.size === size)?.tokensPerSecond;
const baselines = [...new Set(rates.map((entry) => entry.engine))].filter((engine) => engine !== "Kvasir");
const rows = rates
  .filter((entry) => entry.engine === "Kvasir")
  .map(({ phase, size, tokensPerSecond }) => [
    phase === "decode" ? `decode, batch ${size}` : `prefill, ${size} tokens`,
    tokensPerSecond.toFixed(0),
    ...baselines.flatMap((engine) => {
      const theirs = rate(engine, phase, size);
      return theirs === undefined ? ["–", "–"] : [theirs.toFixed(0), `${(tokensPerSecond / theirs).toFixed(2)}×`];
    }),
  ]);
const header = ["tokens/s", "Kvasir", ...baselines.flatMap((engine) => [engine, "ratio"])];
const decode1 = rate("Kvasir", "decode", 1);
const bandwidth = decode1 === undefined ? "–" : ((decode1 * own.weight_bytes_per_step) / 1e9).toFixed(1);
publish(
  "engine",
  "Speed of the CPU engine",
  `${model.servedName} (${own.device}), ${threads} threads, decoding at a context of ${context} tokens. PyTorch computes the dequantised weights in f32; the others the
quantised ones.

${table(header, rows)}

Decoding alone reads ${(own.weight_bytes_per_step / 1e6).toFixed(0)} MB of weights a token: ${bandwidth} GB/s.`,
);
