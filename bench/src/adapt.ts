import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { accuracyOf, type CodecLevelFacts, type KvAccuracy } from "@kvasir/core";
import { resolveModel } from "@kvasir/models";
import { KvSourceSchema } from "@kvasir/proto";
import { startShapedLink } from "@kvasir/testkit/shaped-link";
import { loadTokenizer } from "@kvasir/tokenizer";
import { BenchSidecar } from "./lib/bench-sidecar.ts";
import { adapted, CHUNK_TOKENS, type Context, computed, fetched, type Knowledge, type Loaded } from "./lib/kv-load.ts";
import { median, option, publish, REPOSITORY, table } from "./lib/report.ts";

// A context's KV from one sidecar process to another through a link of a changing speed: when the first token is there, by how it travels.
const profile = option("codec-profile", process.env.KVASIR_CODEC_PROFILE ?? "");
if (!existsSync(profile)) {
  throw new Error(
    "name the model's codec profile with --codec-profile FILE; npm run kvasir -- profile codec makes one",
  );
}
const contextTokens = Number(option("tokens", "1024"));
const requestCount = Number(option("requests", "20"));
const runCount = Number(option("runs", "3"));
const objectiveMs = Number(option("objective-ms", "500"));
/** The KV of CacheGen's contexts of 9,400 tokens of a 7B model with grouped heads, in 16 bits. */
const CACHEGEN_BYTES = 9_400 * 131_072;
const TRACE_STEP_MS = 100;
const RATES_MB_PER_S = [2, 5, 10, 20, 50, 100, 200];
const UNSHAPED = 1e9;

const model = await resolveModel("smollm2", process.env.KVASIR_CACHE ?? join(REPOSITORY, ".cache"), () => undefined);
const tokenizer = await loadTokenizer(model.directory);
const text = ["README.md", "ARCHITECTURE.md"].map((name) => readFileSync(join(REPOSITORY, name), "utf8")).join("\n");
const tokenIds = (await tokenizer.encode(text, { addSpecialTokens: false })).slice(0, contextTokens + 1);

const flags = ["--model", model.directory, "--codec-profile", profile, "--kv-bytes", "128MiB"];
const source = await BenchSidecar.start([...flags, "--role", "prefill"]);
const sink = await BenchSidecar.start([...flags, "--role", "decode"]);
const link = await startShapedLink(source.about.transferAddresses[0] ?? "", UNSHAPED);
try {
  const context = await prepared();
  const own = source.about.codecProfiles[1];
  if (own === undefined) throw new Error("the sidecar announces no profile of the model");
  const levels = own.levels.map(
    (level, index): CodecLevelFacts => ({
      ...{ name: level.name, ratio: level.ratio, accuracy: accuracyOf(index, level.kl) ?? "fast" },
      encodeBytesPerMs: level.encodeBytesPerSecond / 1e3 || Number.POSITIVE_INFINITY,
      decodeBytesPerMs: level.decodeBytesPerSecond / 1e3 || Number.POSITIVE_INFINITY,
    }),
  );
  const kls = own.levels.map(({ kl }) => kl);
  const scale = CACHEGEN_BYTES / (contextTokens * context.bytesPerToken);
  const textMs = (await computed(context)).ms;
  publish(
    "adapt",
    "KV over a link that changes",
    `${setUp(context, scale, textMs)}

${await breakEven(context, levels, textMs)}

${await traces(context, levels, kls, scale, textMs)}`,
  );
} finally {
  source.stop();
  sink.stop();
  await link.close();
}

/** The source computes the context and opens it to pulls; the sink has blocks for it. */
async function prepared(): Promise<Context> {
  const blockSize = source.about.layout?.blockSize ?? 32;
  const blockIds = Array.from({ length: Math.ceil((contextTokens + 1) / blockSize) }, (_, index) => index);
  const sequenceId = 1n;
  const sampling = { maxTokens: 1 };
  const ticket = await source.publish(sequenceId, contextTokens, blockIds.slice(0, contextTokens / blockSize));
  for (let begin = 0; begin < contextTokens; begin += CHUNK_TOKENS) {
    const start = { sequenceId, promptTokenCount: tokenIds.length, sampling, blockIds };
    const slice = { sequenceId, startPosition: begin, tokenCount: CHUNK_TOKENS };
    await source.step({
      starts: begin === 0 ? [start] : [],
      slices: [{ ...slice, tokenIds: tokenIds.slice(begin, begin + CHUNK_TOKENS) }],
    });
  }
  return {
    source: create(KvSourceSchema, {
      ...(source.about.layout ? { layout: source.about.layout } : {}),
      shardAddresses: [link.address],
    }),
    ...{ ticket, sink, blockIds, tokenIds, profileId: source.about.codecProfiles[1]?.id ?? new Uint8Array() },
    bytesPerToken: source.about.kvBytesPerToken,
  };
}

function setUp({ bytesPerToken }: Context, scale: number, textMs: number): string {
  return `Two sidecar processes on this machine, SmolLM2-135M, KV in bf16. The source holds the KV of ${contextTokens} tokens (${((contextTokens * bytesPerToken) / 1e6).toFixed(1)} MB raw; this project's README and
ARCHITECTURE, nothing that the profile was made from); the sink pulls it through a TCP proxy with a token bucket, writes it into its pool, and computes one
more token. Times are from the request to that token, all real: encoding, the link, decoding, the step. "Text" computes the ${contextTokens} tokens instead: ${textMs.toFixed(0)} ms here.

**Scale.** CacheGen's contexts are some ${(CACHEGEN_BYTES / 1e9).toFixed(2)} GB of KV, ${scale.toFixed(0)} times ours, so links are divided by ${scale.toFixed(0)}: its 0.1 to 10 Gb/s are ${(12.5 / scale).toFixed(2)} to ${(1_250 / scale).toFixed(1)} MB/s here. The objective of ${objectiveMs} ms is not scaled.
Coders and prefill are one CPU's for a small model instead of a GPU's for a large one: ratios of link to coder and to prefill are this machine's.`;
}

async function breakEven(context: Context, levels: readonly CodecLevelFacts[], textMs: number): Promise<string> {
  const rows: string[][] = [];
  for (const rate of [...RATES_MB_PER_S, UNSHAPED / 1e3]) {
    link.setRate(rate * 1e3);
    const times: number[] = [];
    for (let level = 0; level < levels.length; level++) {
      const runs: number[] = [];
      for (let run = 0; run < runCount; run++) runs.push((await fetched(context, level, contextTokens)).ms);
      times.push(median(runs));
    }
    const all = [textMs, ...times];
    const best = Math.min(...all);
    const cells = all.map((ms) => (ms === best ? `**${ms.toFixed(0)}**` : ms.toFixed(0)));
    rows.push([rate === UNSHAPED / 1e3 ? "not shaped" : `${rate}`, ...cells]);
    process.stderr.write(`${rows.at(-1)?.join(" · ")}\n`);
  }
  return `## Which choice wins at which bandwidth

Milliseconds to the first token, medians of ${runCount}; the best is bold.

${table(["MB/s", "text", ...levels.map(({ name }) => name)], rows)}`;
}

interface Trace {
  readonly name: string;
  /** MB/s during the n-th step of a request. */
  readonly rates: (request: number) => (step: number) => number;
}

async function traces(
  context: Context,
  levels: readonly CodecLevelFacts[],
  kls: readonly number[],
  scale: number,
  textMs: number,
): Promise<string> {
  const [low, high] = [12.5 / scale, 1_250 / scale];
  const uniform: Trace = {
    name: `Uniform: every ${TRACE_STEP_MS} ms another speed, U(0.1, 10) Gb/s over ${scale.toFixed(0)}`,
    rates: (request) => {
      const draw = drawsFrom(request + 1);
      const drawn: number[] = [];
      return (step) => {
        while (drawn.length <= step) drawn.push(low + (high - low) * draw());
        return drawn[step] as number;
      };
    },
  };
  const steps: Trace = {
    name: "Steps: fast for 100 ms, then a tenth of it, and every other request the other way round",
    rates: (request) => (step) => {
      const isFast = step < 1 === (request % 2 === 0);
      return isFast ? high : high / 10;
    },
  };
  const sections: string[] = [];
  for (const trace of [uniform, steps]) {
    const rows: string[][] = [];
    const arm = async (name: string, load: () => Promise<Loaded>) => {
      const all: Loaded[] = [];
      for (let request = 0; request < requestCount; request++) {
        all.push(await along(trace.rates(request), load));
      }
      rows.push(rowOf(name, all, kls));
      process.stderr.write(`${rows.at(-1)?.join(" · ")}\n`);
    };
    await arm("text", () => computed(context));
    for (const [level, { name }] of levels.entries())
      await arm(`all ${name}`, () => fetched(context, level, contextTokens));
    for (const budget of ["exact", "near", "fast"] satisfies KvAccuracy[]) {
      const knowledge: Knowledge = {
        bytesPerMs: ((low + high) / 2) * 1e3,
        computeMsPerToken: textMs / contextTokens,
        levels: [...levels],
      };
      await arm(`adaptive, ${budget}`, () => adapted(context, knowledge, budget, objectiveMs));
    }
    const header = ["", `misses ${objectiveMs} ms`, "median ms", "p90 ms", "MB sent", "computed", "KL of what came"];
    sections.push(`### ${trace.name}\n\n${requestCount} requests, one at a time.\n\n${table(header, rows)}`);
  }
  return `## A link that changes

Adaptive: before each chunk of ${CHUNK_TOKENS} tokens \`planTransfer\` (packages/core/src/codec-level) chooses its level, or to compute it, by the speeds that earlier chunks had; the device computes
from the front while the link brings the end, and a chunk that is late counts at once; plans are made for 60 % of the time left. The three differ in the accuracy that the request allows: exact levels only, up to a KL of 0.003, up to 0.05. "KL of what came": of each level as its
profile says, by tokens, text and exact KV as 0.

${sections.join("\n\n")}`;
}

/** Runs a load while the link follows a trace that begins with it. */
async function along(rate: (step: number) => number, load: () => Promise<Loaded>): Promise<Loaded> {
  let step = 0;
  link.setRate(rate(step) * 1e3);
  const timer = setInterval(() => link.setRate(rate(++step) * 1e3), TRACE_STEP_MS);
  try {
    return await load();
  } finally {
    clearInterval(timer);
  }
}

function rowOf(name: string, all: readonly Loaded[], kls: readonly number[]): string[] {
  const times = all.map(({ ms }) => ms);
  const sorted = [...times].sort((a, b) => a - b);
  const missed = times.filter((ms) => ms > objectiveMs).length / all.length;
  const mean = (of: (one: Loaded) => number) => all.reduce((sum, one) => sum + of(one), 0) / all.length;
  const kl = mean(({ tokensByLevel }) =>
    [...tokensByLevel].reduce((sum, [level, tokens]) => sum + ((kls[level] ?? 0) * tokens) / contextTokens, 0),
  );
  return [
    name,
    `${(100 * missed).toFixed(0)} %`,
    median(times).toFixed(0),
    (sorted[Math.ceil(0.9 * sorted.length) - 1] ?? Number.NaN).toFixed(0),
    mean(({ wireBytes }) => wireBytes / 1e6).toFixed(1),
    `${((100 * mean(({ computedTokenCount }) => computedTokenCount)) / contextTokens).toFixed(0)} %`,
    kl.toFixed(4),
  ];
}

/** Uniform in 0 to 1, the same each time: a linear congruential generator (Knuth's MMIX constants, upper bits). */
function drawsFrom(seed: number): () => number {
  let state = BigInt(seed) * 0x9e37_79b9_7f4a_7c15n;
  return () => {
    state = (state * 6_364_136_223_846_793_005n + 1_442_695_040_888_963_407n) & 0xffff_ffff_ffff_ffffn;
    return Number(state >> 32n) / 2 ** 32;
  };
}
