import { existsSync, readFileSync } from "node:fs";
import { loadavg } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { accuracyOf, type CodecLevelFacts, type CodecProfileFacts, KV_ACCURACIES } from "@kvasir/core";
import { resolveModel } from "@kvasir/models";
import { KvSourceSchema } from "@kvasir/proto";
import { startShapedLink } from "@kvasir/testkit/shaped-link";
import { loadTokenizer } from "@kvasir/tokenizer";
import { type Arm, missesSection, rowOf } from "./lib/adapt-report.ts";
import { simulatedMs, type Way } from "./lib/adaptation.ts";
import { type BandwidthTrace, stepTrace, uniformTrace } from "./lib/bandwidth-traces.ts";
import { BenchSidecar } from "./lib/bench-sidecar.ts";
import {
  adapted,
  CHUNK_TOKENS,
  type Context,
  computed,
  fetched,
  knowledgeOf,
  type Loaded,
  loadFacts,
  TAIL_MS,
} from "./lib/kv-load.ts";
import { median, option, publish, REPOSITORY, table } from "./lib/report.ts";

// A context's KV from one sidecar process to another through a link of a changing speed: when the first token is there, by how it travels.
const profile = option("codec-profile", process.env.KVASIR_CODEC_PROFILE ?? "");
if (!existsSync(profile)) {
  throw new Error(
    "name the model's codec profile with --codec-profile FILE; npm run kvasir -- profile codec makes one",
  );
}
const contextTokens = Number(option("tokens", "1024"));
const requestCount = Number(option("requests", "30"));
const runCount = Number(option("runs", "3"));
const objectiveMs = Number(option("objective-ms", "500"));
/** The KV of CacheGen's contexts of 9,400 tokens of a 7B model with grouped heads, in 16 bits. */
const CACHEGEN_BYTES = 9_400 * 131_072;
/** How often the shaped link follows its trace. */
const FOLLOW_MS = 10;
/** Too slow to be in time on any of the traces, and to wait for. */
const LEFT_OUT = ["raw", "fast-near", "near"];
const SIMULATED_COUNT = 100;
const SIMULATED_OBJECTIVES_MS = [100, 200, 300, 400, 500, 700, 1_000, 1_500];
const RATES_MB_PER_S = [2, 5, 10, 20, 50, 100, 200];
const UNSHAPED = 1e9;

const loadBefore = loadavg()[0] ?? 0;
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
  const profile: CodecProfileFacts = {
    id: Buffer.from(own.id).toString("hex"),
    levels: own.levels.map((level, index): CodecLevelFacts | undefined => {
      const accuracy = accuracyOf(index, level.kl);
      const speeds = {
        encodeBytesPerMs: level.encodeBytesPerSecond / 1e3 || Number.POSITIVE_INFINITY,
        decodeBytesPerMs: level.decodeBytesPerSecond / 1e3 || Number.POSITIVE_INFINITY,
      };
      return accuracy && { ...{ name: level.name, ratio: level.ratio, accuracy }, ...speeds };
    }),
  };
  const kls = own.levels.map(({ kl }) => kl);
  const scale = CACHEGEN_BYTES / (contextTokens * context.bytesPerToken);
  const textMs = median(
    [await computed(context), await computed(context), await computed(context)].map(({ ms }) => ms),
  );
  const [low, high] = [12.5e3 / scale, 1_250e3 / scale];
  const setting = { context, profile, kls, textMs, low, high };
  const traces = [uniformTrace(low, high, 500), stepTrace(high, objectiveMs)];
  publish(
    "adapt",
    "KV over a link that changes",
    `${setUp(context, scale, textMs, loadBefore)}

${await breakEven(context, profile, textMs)}

${await changing(setting, traces)}

${sweep(setting, [uniformTrace(low, high, 100), ...traces])}`,
    `adapt --codec-profile FILE --tokens ${contextTokens} --objective-ms ${objectiveMs} --requests ${requestCount} --runs ${runCount}`,
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

interface Setting {
  readonly context: Context;
  readonly profile: CodecProfileFacts;
  /** Of each level. */
  readonly kls: readonly number[];
  readonly textMs: number;
  /** The link's slowest and greatest speed, bytes a millisecond. */
  readonly low: number;
  readonly high: number;
}

function setUp({ bytesPerToken }: Context, scale: number, textMs: number, loadBefore: number): string {
  const [low, high] = [12.5 / scale, 1_250 / scale];
  return `Load average just before: ${loadBefore.toFixed(1)} on two processors; ${requestCount} requests of each way, the ways in turn, so that whatever else ran met all of them.

Two sidecar processes on this machine, SmolLM2-135M, KV in bf16. The source holds the KV of ${contextTokens} tokens (${((contextTokens * bytesPerToken) / 1e6).toFixed(1)} MB raw; this project's README and
ARCHITECTURE, nothing that the profile was made from); the sink pulls it through a TCP proxy with a token bucket, writes it into its pool, and computes one
more token. Times are from the request to that token, all real: encoding, the link, decoding, the step. "Text" computes the ${contextTokens} tokens instead: ${textMs.toFixed(0)} ms here.

**Scale.** CacheGen's contexts are some ${(CACHEGEN_BYTES / 1e9).toFixed(2)} GB of KV, ${scale.toFixed(0)} times ours, so links are divided by ${scale.toFixed(0)}: its 0.1 to 10 Gb/s are ${low.toFixed(2)} to ${high.toFixed(1)} MB/s here. The objective of ${objectiveMs} ms is not
scaled; computing the text takes ${(textMs / objectiveMs).toFixed(1)} times as long (a short context that is computed within the objective needs no KV and no adapting: fixed to text, it is never late).
Coders and prefill are one CPU's for a small model instead of a GPU's for a large one: ratios of link to coder and to prefill are this machine's.`;
}

async function breakEven(context: Context, { levels }: CodecProfileFacts, textMs: number): Promise<string> {
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

Milliseconds to the first token${runCount > 1 ? `, medians of ${runCount}` : ""}; the best is bold.

${table(["MB/s", "text", ...levels.map((level) => level?.name ?? "")], rows)}`;
}

async function changing(
  { context, profile, kls, textMs, low, high }: Setting,
  traces: readonly BandwidthTrace[],
): Promise<string> {
  const facts = { objectiveMs, contextTokens, kls };
  const sections: string[] = [];
  for (const trace of traces) {
    const ways: { readonly name: string; readonly isAdaptive: boolean; readonly load: () => Promise<Loaded> }[] = [
      { name: "text", isAdaptive: false, load: () => computed(context) },
    ];
    for (const [level, known] of profile.levels.entries()) {
      if (known === undefined || LEFT_OUT.includes(known.name)) continue;
      ways.push({ name: `all ${known.name}`, isAdaptive: false, load: () => fetched(context, level, contextTokens) });
    }
    for (const budget of KV_ACCURACIES) {
      const knowledge = knowledgeOf(profile, (low + high) / 2, textMs / contextTokens);
      const load = () => adapted(context, knowledge, budget, objectiveMs);
      ways.push({ name: `adaptive, ${budget}`, isAdaptive: true, load });
    }
    const arms: (Arm & { readonly loads: Loaded[] })[] = ways.map((way) => ({ ...way, loads: [] }));
    for (let request = 0; request < requestCount; request++) {
      for (const [index, { load }] of ways.entries()) arms[index]?.loads.push(await along(trace.rates(request), load));
      process.stderr.write(`request ${request}: ${arms.map(({ loads }) => loads.at(-1)?.ms.toFixed(0)).join(" · ")}\n`);
    }
    for (const arm of arms) process.stderr.write(`${rowOf(arm, facts).join(" · ")}\n`);
    sections.push(`### ${trace.name}\n\n${missesSection(arms, facts)}`);
  }
  return `## A link that changes

Adaptive: before each chunk of ${CHUNK_TOKENS} tokens the \`TransferBook\` (packages/core/src/codec-level), which workers use, chooses its level, or to compute it. It plans for the speed that
the link may fall to, a low quantile of what earlier chunks had; the device computes from the front while the link brings the end, and a chunk that is late on the link when the device comes to
it is taken back and computed. The three differ in the accuracy that the request allows: exact levels only, up to a KL of 0.003, up to 0.05. "KL of what came": of each level as
its profile says, by tokens, text and exact KV as 0. ${LEFT_OUT.join(", ")} are left out: slower than others here that are as exact or more so, or far from in time.

${sections.join("\n\n")}`;
}

/** Share of misses for each objective, simulated with the coders' and the device's measured speeds. */
function sweep({ context, profile, textMs, low, high }: Setting, traces: readonly BandwidthTrace[]): string {
  const levels = profile.levels.map((level) => level ?? (profile.levels[0] as CodecLevelFacts));
  const shape = {
    chunkCount: contextTokens / CHUNK_TOKENS,
    chunkTokens: CHUNK_TOKENS,
    bytesPerToken: context.bytesPerToken,
  };
  const computeMsPerToken = (textMs - TAIL_MS) / contextTokens;
  const world = { levels, computeMsPerToken, tailMs: TAIL_MS };
  const sections = traces.map((trace) => {
    const timesOf = (way: Way) =>
      Array.from({ length: SIMULATED_COUNT }, (_, request) =>
        simulatedMs({ ...world, rate: trace.rates(request) }, way, shape),
      );
    const share = (times: readonly number[], objective: number) =>
      `${((100 * times.filter((ms) => ms > objective).length) / times.length).toFixed(0)}`;
    const fixed = (name: string, way: Way) => {
      const times = timesOf(way);
      return [name, ...SIMULATED_OBJECTIVES_MS.map((objective) => share(times, objective))];
    };
    const rows = [
      fixed("text", { kind: "text" }),
      ...levels.map(({ name }, level) => fixed(`all ${name}`, { kind: "level", level })),
      ...KV_ACCURACIES.map((budget) => [
        `adaptive, ${budget}`,
        ...SIMULATED_OBJECTIVES_MS.map((objective) => {
          const knowledge = knowledgeOf(profile, (low + high) / 2, computeMsPerToken);
          const load = loadFacts(knowledge, contextTokens, context.bytesPerToken, budget, objective - TAIL_MS);
          return share(timesOf({ kind: "adaptive", load, computeMs: knowledge.computeMs }), objective);
        }),
      ]),
    ];
    return `### ${trace.name}\n\n${table(["% late", ...SIMULATED_OBJECTIVES_MS.map((ms) => `${ms} ms`)], rows)}`;
  });
  return `## Other objectives, simulated

Share of ${SIMULATED_COUNT} requests that are later than the objective, in virtual time: the same choices, with the ratios and speeds of the coders that the sidecar measured at its start and the
device's of the text above. What the live runs above have and this lacks: coders and device that compete for two processors, and steps that take longer than planned.

${sections.join("\n\n")}`;
}

/** Runs a load while the link follows a trace that begins with it. */
async function along(rate: (ms: number) => number, load: () => Promise<Loaded>): Promise<Loaded> {
  const begun = performance.now();
  link.setRate(rate(0));
  const timer = setInterval(() => link.setRate(rate(performance.now() - begun)), FOLLOW_MS);
  try {
    return await load();
  } finally {
    clearInterval(timer);
  }
}
