import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CodecLevelFacts, type KvAccuracy, type KvChunkFacts, planTransfer } from "@kvasir/core";
import { resolveModel } from "@kvasir/models";
import { loadTokenizer } from "@kvasir/tokenizer";
import { option, publish, REPOSITORY, table } from "./lib/report.ts";
import { output, SIDECAR } from "./lib/run.ts";
import { steadyMs } from "./lib/steady-time.ts";

// Speed of the KV codec on one core, and where each level wins: time for a text's KV against the speed of the link.
interface Row {
  readonly level: string;
  readonly chunk_tokens: number;
  readonly ratio: number;
  readonly encode_gb_per_s: number;
  readonly decode_gb_per_s: number;
  readonly copy_gb_per_s: number;
}

const TEXT_TOKENS = 1_536;
const BYTES_PER_TOKEN = 23_040;
const CHUNK_TOKENS = 256;
const LINKS_GBIT = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 25, 100];

const profile = option("codec-profile", process.env.KVASIR_CODEC_PROFILE ?? "");
if (!existsSync(profile)) {
  throw new Error(
    "name the model's codec profile with --codec-profile FILE; npm run kvasir -- profile codec makes one",
  );
}
const model = await resolveModel("smollm2", process.env.KVASIR_CACHE ?? join(REPOSITORY, ".cache"), () => undefined);
const cores = Number(option("cores", "1"));
const rows = await measure();
const prefillTokensPerMs = Number(option("prefill-tokens-per-s", "1000")) / 1_000;
const levels = rows.filter((row) => row.chunk_tokens === CHUNK_TOKENS).map(factsOf);

publish(
  "codec-speed",
  "Speed of the KV codec",
  `${speedSection()}

${breakEvenSection()}`,
);

async function measure(): Promise<readonly Row[]> {
  const tokenizer = await loadTokenizer(model.directory);
  const text = ["README.md", "ARCHITECTURE.md"].map((name) => readFileSync(join(REPOSITORY, name), "utf8")).join("\n");
  const tokens = await tokenizer.encode(text, { addSpecialTokens: false });
  const folder = mkdtempSync(join(tmpdir(), "kvasir-bench-"));
  const item = {
    ...{ id: "text", prefix: tokens.slice(0, TEXT_TOKENS), documents: [], suffix: tokens.slice(0, 1) },
    ...{ max_tokens: 1, stop_token_ids: [] },
  };
  writeFileSync(join(folder, "items.jsonl"), `${JSON.stringify(item)}\n`);
  const flags = ["--model", model.directory, "--codec-profile", profile, "--items", join(folder, "items.jsonl")];
  const printed = await output(SIDECAR, ["bench-codec", ...flags, "--repetitions", option("repetitions", "7")]);
  rmSync(folder, { recursive: true });
  return JSON.parse(printed) as readonly Row[];
}

function factsOf(row: Row): CodecLevelFacts {
  const accuracy: KvAccuracy = ["raw", "lossless"].includes(row.level)
    ? "exact"
    : row.level.includes("near")
      ? "near"
      : "fast";
  // Raw KV is copied by every way; its own time is not counted.
  const speed = (gbPerS: number) => (row.level === "raw" ? Number.POSITIVE_INFINITY : gbPerS * 1e6 * cores);
  return {
    ...{ name: row.level, accuracy, ratio: row.ratio },
    encodeBytesPerMs: speed(row.encode_gb_per_s),
    decodeBytesPerMs: speed(row.decode_gb_per_s),
  };
}

function speedSection(): string {
  const cells = rows.map((row) => [
    row.level,
    `${row.chunk_tokens}`,
    `${row.ratio.toFixed(2)}×`,
    row.encode_gb_per_s.toFixed(2),
    row.decode_gb_per_s.toFixed(2),
    `${((100 * row.encode_gb_per_s) / row.copy_gb_per_s).toFixed(0)} %`,
    `${((100 * row.decode_gb_per_s) / row.copy_gb_per_s).toFixed(0)} %`,
  ]);
  const header = [
    "level",
    "tokens of a chunk",
    "ratio",
    "encode GB/s",
    "decode GB/s",
    "encode of a copy",
    "decode of a copy",
  ];
  return `One thread; GB of raw KV (bf16) a second, headers and checksums included, from packed KV to a chunk's bytes and back; each chunk with the best of its repetitions.
The KV is SmolLM2's over ${TEXT_TOKENS} tokens of this project's README and ARCHITECTURE, nothing that the profile was made from. "Of a copy": over copying
6 MiB in the same rounds.

${table(header, cells)}`;
}

function breakEvenSection(): string {
  const chunks = chunksOf(2_048);
  const fixed = [undefined, ...levels];
  const cells = LINKS_GBIT.map((gbit) => {
    const bytesPerMs = (gbit * 1e9) / 8 / 1e3;
    const times = fixed.map((level) => steadyMs(chunks, level, bytesPerMs));
    const best = Math.min(...times);
    const link = { bytesPerMs, lowBytesPerMs: bytesPerMs, activeStreams: 1, latencyMs: 0, queuedBytes: 0 };
    const asked = { chunks, levels, link, deadlineMs: undefined, mayCompute: true, computeBusyMs: 0 };
    const plan = planTransfer({ ...asked, budget: "exact" });
    const travels = plan.levels[0] === undefined ? "" : `${plan.levels.length} ${plan.levels[0].name}`;
    const computes = plan.computedCount === 0 ? "" : `${plan.computedCount} computed`;
    const chosen = `${plan.predictedMs.toFixed(0)}: ${[computes, travels].filter((part) => part !== "").join(", ")}`;
    return [`${gbit}`, ...times.map((ms) => (ms === best ? `**${ms.toFixed(0)}**` : ms.toFixed(0))), chosen];
  });
  const header = ["Gb/s", "computed", ...levels.map(({ name }) => name), "exact plan"];
  return `## Which choice wins at which bandwidth

Milliseconds until 2,048 tokens of KV (${((2_048 * BYTES_PER_TOKEN) / 1e6).toFixed(0)} MB raw) are there, ${cores} core(s) coding, ${prefillTokensPerMs * 1_000} tokens/s of prefill, by each fixed choice and by the plan for a
request that allows no error. The best fixed choice is bold. Predicted by \`packages/core/src/codec-level\` from the speeds above.

${table(header, cells)}`;
}

function chunksOf(tokens: number): readonly KvChunkFacts[] {
  const chunk = { rawBytes: CHUNK_TOKENS * BYTES_PER_TOKEN, computeMs: CHUNK_TOKENS / prefillTokensPerMs };
  return Array.from({ length: tokens / CHUNK_TOKENS }, () => chunk);
}
