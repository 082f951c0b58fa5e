import { existsSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { resolveModel } from "@kvasir/models";
import { option, publish, REPOSITORY, table } from "./lib/report.ts";
import { output, SIDECAR } from "./lib/run.ts";

// Decode and prefill speed beside what a user would otherwise run, and beside what the machine can do: SmolLM2 as a quantised GGUF file (llama.cpp,
// and PyTorch eager on the same weights in f32) and random bf16 weights in the shape of Llama 3.2 1B (PyTorch eager in bf16). The engines take
// turns, round after round, with the same threads; of each figure the best repetition of all rounds counts, of ours and of theirs.
type Phase = "decode" | "prefill";

interface Measurement {
  readonly size: number;
  readonly best_tokens_per_second: number;
  readonly memory_share: number;
  readonly compute_share: number;
}

interface AttentionMeasurement {
  readonly context: number;
  readonly layer_bytes: number;
  readonly decode_microseconds: number;
  readonly decode_memory_share: number;
  readonly chunk_microseconds: number;
  readonly chunk_compute_share: number;
}

interface OwnReport {
  readonly device: string;
  readonly weight_bytes_per_step: number;
  readonly kv_bytes_per_token: number;
  readonly read_bytes_per_second: number;
  readonly f32_macs_per_second: number;
  readonly bf16_macs_per_second: number;
  readonly int8_macs_per_second: number;
  readonly decode: readonly Measurement[];
  readonly prefill: readonly Measurement[];
  readonly attention: readonly AttentionMeasurement[];
}

interface Workload {
  readonly title: string;
  /** What our engine loads. */
  readonly model: string;
  /** What the baselines load. */
  readonly baseline: readonly string[];
  readonly engines: readonly string[];
  readonly repetitions: number;
  readonly steps: number;
}

const threads = option("threads", String(cpus().length));
const rounds = Number(option("rounds", "2"));
const only = option("only", "smollm2,llama-1b").split(",");
const baselines = option("engines", "llama.cpp,pytorch").split(",");
const context = option("context", "512");
const common = [
  ...["--threads", threads, "--context", context],
  ...["--batches", option("batches", "1,8,32"), "--prompts", option("prompts", "512,2048")],
];
const python = join(REPOSITORY, ".cache", "python", "bin", "python");
const script = join(REPOSITORY, "bench", "baselines", "engines.py");
const say = (line: string) => process.stderr.write(`${line}\n`);

async function workloads(): Promise<readonly Workload[]> {
  const model = await resolveModel(option("model", "smollm2"), join(REPOSITORY, ".cache"), say);
  const quantised: Workload = {
    title: `${model.servedName}, GGUF. PyTorch computes the dequantised weights in f32, the others the quantised ones.`,
    model: model.directory,
    baseline: ["--gguf", join(model.directory, "model.gguf")],
    engines: ["llama.cpp", "pytorch"],
    repetitions: 3,
    steps: 32,
  };
  const dense: Workload = {
    title:
      "Random bf16 weights in the shape of Llama 3.2 1B. Both compute in bf16 and sum in f32 (Kvasir by `--weights bf16`).",
    model: "random:llama-1b:bf16-pairs",
    baseline: ["--shape", "llama-1b"],
    engines: ["pytorch"],
    repetitions: 1,
    steps: 8,
  };
  return [...(only.includes("smollm2") ? [quantised] : []), ...(only.includes("llama-1b") ? [dense] : [])];
}

/** Runs our engine once. */
async function runOwn(workload: Workload): Promise<OwnReport> {
  say("  Kvasir");
  const repetitions = ["--repetitions", String(workload.repetitions), "--steps", String(workload.steps)];
  const text = await output(SIDECAR, [
    ...["bench-engine", "--model", workload.model, "--kv-bytes", "2GiB"],
    ...[...common, ...repetitions],
  ]);
  return JSON.parse(text) as OwnReport;
}

/** Best rates so far by engine, phase and size. */
class BestRates {
  readonly #rates = new Map<string, number>();

  note(engine: string, phase: Phase, size: number, tokensPerSecond: number): void {
    const key = `${engine} ${phase} ${size}`;
    this.#rates.set(key, Math.max(tokensPerSecond, this.#rates.get(key) ?? 0));
  }

  of(engine: string, phase: Phase, size: number): number | undefined {
    return this.#rates.get(`${engine} ${phase} ${size}`);
  }
}

async function runBaseline(workload: Workload, engine: string, rates: BestRates): Promise<void> {
  say(`  ${engine}`);
  const repetitions = ["--repeats", String(workload.repetitions), "--steps", String(workload.steps)];
  const text = await output(python, [script, ...workload.baseline, ...common, ...repetitions, "--engines", engine]);
  for (const line of text.trim().split("\n")) {
    const { phase, batch, tokens, tokens_per_second } = JSON.parse(line);
    rates.note(engine, phase, batch ?? tokens, tokens_per_second);
  }
}

async function section(workload: Workload): Promise<string> {
  say(workload.title);
  const hasBaselines = existsSync(python);
  if (!hasBaselines) say("no baselines: their Python environment is missing (npm run bench -- engine makes it)");
  const engines = hasBaselines ? workload.engines.filter((engine) => baselines.includes(engine)) : [];
  const rates = new BestRates();
  const reports: OwnReport[] = [];
  for (let round = 0; round < rounds; round += 1) {
    reports.push(await runOwn(workload));
    for (const engine of engines) await runBaseline(workload, engine, rates);
  }
  const [first] = reports;
  return first === undefined ? "" : [workload.title, ...tables(first, reports, engines, rates)].join("\n\n");
}

function tables(
  own: OwnReport,
  reports: readonly OwnReport[],
  engines: readonly string[],
  rates: BestRates,
): readonly string[] {
  const percent = (share: number) => `${(share * 100).toFixed(0)} %`;
  const machine = (
    key: "read_bytes_per_second" | "f32_macs_per_second" | "bf16_macs_per_second" | "int8_macs_per_second",
  ) => (Math.max(...reports.map((report) => report[key])) / 1e9).toFixed(1);
  const speed = (["decode", "prefill"] as const).flatMap((phase) =>
    own[phase].map(({ size }) => {
      const all = reports.flatMap((report) => report[phase].filter((entry) => entry.size === size));
      const best = all.reduce((a, b) => (b.best_tokens_per_second > a.best_tokens_per_second ? b : a));
      const ours = best.best_tokens_per_second;
      return [
        phase === "decode" ? `decode, batch ${size}` : `prefill, ${size} tokens`,
        ours.toFixed(ours < 100 ? 1 : 0),
        phase === "decode" ? percent(best.memory_share) : "–",
        percent(best.compute_share),
        ...engines.flatMap((engine) => {
          const theirs = rates.of(engine, phase, size);
          if (theirs === undefined) return ["–", "–"];
          return [theirs.toFixed(theirs < 100 ? 1 : 0), `${(ours / theirs).toFixed(2)}×`];
        }),
      ];
    }),
  );
  const attention = own.attention.map(({ context: length, layer_bytes }) => {
    const all = reports.flatMap((report) => report.attention.filter((entry) => entry.context === length));
    const decode = all.reduce((a, b) => (b.decode_microseconds < a.decode_microseconds ? b : a));
    const chunk = all.reduce((a, b) => (b.chunk_microseconds < a.chunk_microseconds ? b : a));
    return [
      String(length),
      (layer_bytes / 1e6).toFixed(2),
      decode.decode_microseconds.toFixed(0),
      (layer_bytes / decode.decode_microseconds / 1e3).toFixed(1),
      percent(decode.decode_memory_share),
      (chunk.chunk_microseconds / 1e3).toFixed(1),
      percent(chunk.chunk_compute_share),
    ];
  });
  const header = ["tokens/s", "Kvasir", "of memory", "of compute"];
  return [
    table([...header, ...engines.flatMap((engine) => [engine, "ratio"])], speed),
    `A decode step reads ${(own.weight_bytes_per_step / 1e6).toFixed(0)} MB of weights and ${(own.kv_bytes_per_token / 1e3).toFixed(0)} kB of KV a token of context. The machine, best of the
rounds: ${machine("read_bytes_per_second")} GB/s read, ${machine("f32_macs_per_second")} G multiply-adds/s in f32, ${machine("bf16_macs_per_second")} G in bf16, ${machine("int8_macs_per_second")} G in 8-bit integers.`,
    "Attention alone, one layer, one sequence: a decode row, and the last 512 rows of a prompt.",
    table(["context", "MB of KV", "decode µs", "GB/s", "of memory", "512 rows ms", "of compute"], attention),
  ];
}

const sections: string[] = [];
for (const workload of await workloads()) sections.push(await section(workload));
publish(
  "engine",
  "Speed of the CPU engine",
  `${threads} threads, decoding at a context of ${context} tokens. Engines take turns in ${rounds} round(s); each figure is the best repetition of all rounds.
"Of memory" and "of compute": the least time in which the machine, as measured in the same process with the same threads, can read the bytes or
do the multiply-adds of the work (f32 for attention, bf16 for bf16 weights, 8-bit integers for quantised ones), over the time taken.

${sections.join("\n\n")}`,
);
