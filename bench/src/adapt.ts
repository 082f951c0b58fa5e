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
import { type BandwidthTrace, stepTrace, uniformTrace } from "./lib/bandwidth-traces.ts";
import { BenchSidecar } from "./lib/bench-sidecar.ts";
import { type Context, computed, fetched, type Loaded, STEP_TOKENS } from "./lib/kv-load.ts";
import { median, option, publish, REPOSITORY, table } from "./lib/report.ts";
import { levelMs, levelsOf, SimulatedWorker, textMs as simulatedTextMs, TAIL_MS } from "./lib/simulated-ways.ts";
import { WorkerPair } from "./lib/worker-load.ts";

// A context's KV from one sidecar process to another through a link of a changing speed: when the first token is there, by how it travels.
const profileFile = option("codec-profile", process.env.KVASIR_CODEC_PROFILE ?? "");
if (!existsSync(profileFile)) {
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
const KV_DTYPE = "bf16";
/** Of each kind, before anything is measured. */
const WARM_UPS = 2;

const loadBefore = loadavg()[0] ?? 0;
const model = await resolveModel("smollm2", process.env.KVASIR_CACHE ?? join(REPOSITORY, ".cache"), () => undefined);
const tokenizer = await loadTokenizer(model.directory);
const text = ["README.md", "ARCHITECTURE.md"].map((name) => readFileSync(join(REPOSITORY, name), "utf8")).join("\n");
const tokenIds = (await tokenizer.encode(text, { addSpecialTokens: false })).slice(0, contextTokens + 1);

const flags = [
  "--model",
  model.directory,
  "--codec-profile",
  profileFile,
  "--kv-bytes",
  "128MiB",
  "--kv-dtype",
  KV_DTYPE,
];
const source = await BenchSidecar.start([...flags, "--role", "prefill"]);
const sink = await BenchSidecar.start([...flags, "--role", "decode"]);
const link = await startShapedLink(source.about.transferAddresses[0] ?? "", UNSHAPED);
let pair: WorkerPair | undefined;
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
  const blockSize = source.about.layout?.blockSize ?? 32;
  const shape = { model: model.directory, codecProfile: profileFile, blockSize, kvDtype: KV_DTYPE };
  const levelNames = profile.levels.map((level) => level?.name);
  const { bytesPerToken } = context;
  pair = await WorkerPair.start({ ...shape, bytesPerToken, tokenIds, levelNames, rate: (low + high) / 2 });
  const setting = { context, profile, kls, textMs, low, high, pair, blockSize };
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
  await pair?.stop();
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
  for (let begin = 0; begin < contextTokens; begin += STEP_TOKENS) {
    const start = { sequenceId, promptTokenCount: tokenIds.length, sampling, blockIds };
    const part = tokenIds.slice(begin, Math.min(contextTokens, begin + STEP_TOKENS));
    await source.step({
      starts: begin === 0 ? [start] : [],
      slices: [{ sequenceId, startPosition: begin, tokenCount: part.length, tokenIds: part }],
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
  readonly pair: WorkerPair;
  readonly blockSize: number;
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

async function changing({ context, profile, kls, pair }: Setting, traces: readonly BandwidthTrace[]): Promise<string> {
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
      const load = () => pair.load(budget, objectiveMs);
      ways.push({ name: `adaptive, ${budget}`, isAdaptive: true, load });
    }
    for (const { load } of ways)
      for (let times = 0; times < WARM_UPS; times++) await along(trace.rates(times), load, pair);
    const arms: (Arm & { readonly loads: Loaded[] })[] = ways.map((way) => ({ ...way, loads: [] }));
    for (let request = 0; request < requestCount; request++) {
      for (const [index, { load }] of ways.entries())
        arms[index]?.loads.push(await along(trace.rates(request), load, pair));
      process.stderr.write(`request ${request}: ${arms.map(({ loads }) => loads.at(-1)?.ms.toFixed(0)).join(" · ")}\n`);
    }
    for (const arm of arms) process.stderr.write(`${rowOf(arm, facts).join(" · ")}\n`);
    sections.push(`### ${trace.name}\n\n${missesSection(arms, facts)}`);
  }
  return `## A link that changes

Adaptive: a worker that is asked for an answer to that prompt and has nothing of it, while another worker has all of it cached behind the link; both are whole workers of this repository
with their sidecars (the gateway and the router are left out: the placement names the lender). The request says its TTFT objective and the accuracy that it allows: exact levels only, up to a
KL of 0.003, up to 0.05. The worker borrows the blocks, fetches from the end while its device computes from the front, chooses for each 64 tokens by what it has measured
of the link by then, computes what is late, and asks again at a denser level for what began at an exact one (\`PrefixLoad\`, packages/core/src/prefix-fetch). Its times are from the
request's call to its first token, admission, the loan and gRPC included. "Text" and "all ..." are calls of a sidecar alone, which have none of that.

"KL of what came": of each level as its profile says, by tokens, text and exact KV as 0. ${LEFT_OUT.join(", ")} are left out: slower than others here that are as exact or more so, or far from in time.

${sections.join("\n\n")}`;
}

/** Share of misses for each objective, simulated with the coders' and the device's measured speeds. */
function sweep({ context, profile, textMs, low, high, blockSize }: Setting, traces: readonly BandwidthTrace[]): string {
  const levels = levelsOf(profile);
  const shape = { tokenCount: contextTokens, blockSize, bytesPerToken: context.bytesPerToken };
  const computeMsPerToken = (textMs - TAIL_MS) / contextTokens;
  const sections = traces.map((trace) => {
    const timesOf = (way: (rate: (ms: number) => number) => number) =>
      Array.from({ length: SIMULATED_COUNT }, (_, request) => way(trace.rates(request)));
    const share = (times: readonly number[], objective: number) =>
      `${((100 * times.filter((ms) => ms > objective).length) / times.length).toFixed(0)}`;
    const fixed = (name: string, way: (rate: (ms: number) => number) => number) => {
      const times = timesOf(way);
      return [name, ...SIMULATED_OBJECTIVES_MS.map((objective) => share(times, objective))];
    };
    const world = { levels, computeMsPerToken };
    const rows = [
      fixed("text", (rate) => simulatedTextMs({ ...world, rate }, shape)),
      ...levels.map(({ name }, level) => fixed(`all ${name}`, (rate) => levelMs({ ...world, rate }, shape, level))),
      ...KV_ACCURACIES.map((budget) => [
        `adaptive, ${budget}`,
        ...SIMULATED_OBJECTIVES_MS.map((objective) => {
          const worker = new SimulatedWorker(profile, (low + high) / 2, computeMsPerToken);
          return share(
            timesOf((rate) => worker.loadMs({ ...world, rate }, shape, budget, objective)),
            objective,
          );
        }),
      ]),
    ];
    return `### ${trace.name}\n\n${table(["% late", ...SIMULATED_OBJECTIVES_MS.map((ms) => `${ms} ms`)], rows)}`;
  });
  return `## Other objectives, simulated

Share of ${SIMULATED_COUNT} requests that are later than the objective, in virtual time: the same \`PrefixLoad\`, with the ratios and speeds of the coders that the sidecar measured at its start and the
device's of the text above. What the live runs above have and this lacks: coders and device that compete for two processors, steps that take longer than planned, and all that is around a load.

${sections.join("\n\n")}`;
}

/** Runs a load while the link follows a trace that begins with it. */
async function along(rate: (ms: number) => number, load: () => Promise<Loaded>, pair: WorkerPair): Promise<Loaded> {
  const begun = performance.now();
  const follow = () => {
    for (const shaped of [link, pair.link]) shaped.setRate(rate(performance.now() - begun));
  };
  follow();
  const timer = setInterval(follow, FOLLOW_MS);
  try {
    return await load();
  } finally {
    clearInterval(timer);
  }
}
