import { readFileSync } from "node:fs";
import { GoodputPolicy, type PlacementPolicy, type StepCost, WORKER_QUEUE_DEFAULTS } from "@kvasir/core";
import {
  DEVICE_PROFILES,
  type DeviceProfile,
  DynamoRouter,
  leastLoadPolicy,
  llmdPolicy,
  mooncakePolicy,
  type Objective,
  parseTrace,
  prefixAffinityPolicy,
  randomPolicy,
  rateOf,
  rolesOf,
  roundRobinPolicy,
  SIMULATION_DEFAULTS,
  scaleRate,
  simulate,
  sliceTrace,
  splitwisePolicy,
  summarize,
  type Trace,
} from "@kvasir/sim";
import { attainmentPlot, type Curve } from "./lib/attainment-plot.ts";
import { option, publish, table } from "./lib/report.ts";

// Requests per second of which at least 90 % meet both their targets, by placement policy, in the simulator: one cluster, one trace, one
// worker scheduler; only where requests are placed differs. The traces are public; give their files.
const WORKERS = Number(option("workers", "16"));
const REQUESTS = Number(option("requests", "1000"));
const SHARE = 0.9;
/** Between two rates that are tried. Smaller: ratios tell small differences, and more runs. */
const STEP = Number(option("step", "1.05"));
const BASE_WORKERS = 16;

interface Setting {
  readonly name: string;
  readonly flag: "azure" | "mooncake";
  readonly file: string;
  readonly profile: DeviceProfile;
  readonly blockSize: number;
  /** Slowest and fastest multiple of the trace's rate that is tried on 16 workers; a fleet of more is tried at so much more. */
  readonly factors: readonly [number, number];
  readonly targets: Readonly<Record<string, Objective>>;
}

const profile = (name: string) => DEVICE_PROFILES[name] as DeviceProfile;
const SETTINGS: readonly Setting[] = [
  {
    name: "azure2023_conv",
    flag: "azure",
    file: option("azure", ""),
    profile: profile("a100-opt-13b"),
    blockSize: 64,
    factors: [3, 14],
    targets: { strict: { ttftMs: 1_000, tbtMs: 40 }, relaxed: { ttftMs: 2_000, tbtMs: 60 } },
  },
  {
    name: "Mooncake conversation",
    flag: "mooncake",
    file: option("mooncake", ""),
    profile: profile("h100-8b"),
    blockSize: 512,
    factors: [2, 14],
    targets: { strict: { ttftMs: 5_000, tbtMs: 20 }, relaxed: { ttftMs: 15_000, tbtMs: 40 } },
  },
];

interface Contender {
  readonly name: string;
  /** Prefill workers of the cluster; the others decode. 0: all do both. */
  readonly prefillCount: number;
  readonly policy: (cost: StepCost) => PlacementPolicy;
}

/** Prefill workers of the split clusters that are tried. */
const SPLITS = [Math.round(WORKERS / 4), Math.round(WORKERS / 2)];
const CONTENDERS: readonly Contender[] = [
  { name: "random", prefillCount: 0, policy: () => randomPolicy() },
  { name: "round-robin", prefillCount: 0, policy: () => roundRobinPolicy() },
  { name: "least load, aggregated (Sarathi-Serve)", prefillCount: 0, policy: () => leastLoadPolicy() },
  { name: "prefix affinity (SGLang)", prefillCount: 0, policy: () => prefixAffinityPolicy() },
  { name: "KV cost (Dynamo)", prefillCount: 0, policy: () => new DynamoRouter() },
  { name: "weighted scorers (llm-d)", prefillCount: 0, policy: () => llmdPolicy() },
  { name: "conductor's rule, aggregated (Mooncake)", prefillCount: 0, policy: (cost) => mooncakePolicy(cost, 512) },
  { name: "Kvasir", prefillCount: 0, policy: () => new GoodputPolicy() },
  ...SPLITS.flatMap((prefillCount): Contender[] => [
    { name: "least load, split (DistServe)", prefillCount, policy: () => leastLoadPolicy() },
    { name: "pools (Splitwise)", prefillCount, policy: () => splitwisePolicy() },
    { name: "conductor (Mooncake)", prefillCount, policy: (cost) => mooncakePolicy(cost, 512) },
    { name: "Kvasir", prefillCount, policy: () => new GoodputPolicy() },
  ]),
];

const only = option("only", "");
const strictnessOnly = option("strictness", "");
/** `--few`: the best known rule of each kind beside ours, for fleets that take minutes a run. */
const FEW = /least load, agg|Dynamo|conductor|pools|Kvasir/;
const contenders = CONTENDERS.filter(({ name }) => !process.argv.includes("--few") || FEW.test(name));
const sections: string[] = [];
for (const setting of SETTINGS.filter(({ file, name }) => file !== "" && name.includes(only))) {
  const whole = parseTrace(setting.name, readFileSync(setting.file, "utf8"));
  const trace = sliceTrace(whole, 0, REQUESTS);
  for (const [strictness, objective] of Object.entries(setting.targets)) {
    if (!strictness.includes(strictnessOnly)) continue;
    const curves: Curve[] = [];
    const rows = contenders.map((contender) => {
      const workers = workersOf(contender);
      const points = searchGoodput(setting, trace, contender, objective);
      curves.push({
        name: `${contender.name}, ${workers}`,
        points: points.map(({ rate, attainment }) => [rate, attainment] as const),
      });
      const good = points.filter(({ attainment }) => attainment >= SHARE);
      const best = good.at(-1) ?? { rate: 0, attainment: 0, summary: undefined };
      process.stderr.write(`${setting.name} ${strictness} ${contender.name} ${workers}: ${best.rate.toFixed(1)}/s\n`);
      return { contender, ...best };
    });
    const others = rows.filter(({ contender }) => !contender.name.startsWith("Kvasir"));
    const bestOther = Math.max(...others.map(({ rate }) => rate));
    const body = rows.map(({ contender, rate, summary }) => [
      contender.name,
      contender.prefillCount === 0
        ? `${WORKERS} mixed`
        : `${contender.prefillCount}P ${WORKERS - contender.prefillCount}D`,
      rate === 0
        ? `below ${((rateOf(trace) * setting.factors[0] * WORKERS) / BASE_WORKERS).toFixed(1)}`
        : rate.toFixed(1),
      `${(rate / bestOther).toFixed(2)}x`,
      summary === undefined ? "–" : summary.meanTtftMs.toFixed(0),
      summary === undefined ? "–" : summary.meanTpotMs.toFixed(1),
      summary === undefined ? "–" : `${(100 * summary.reuse).toFixed(0)} %`,
      summary === undefined ? "–" : `${((100 * summary.rejectedCount) / summary.requestCount).toFixed(1)} %`,
    ]);
    const header = [
      "policy",
      "workers",
      "goodput/s",
      "of the best other",
      "mean TTFT ms",
      "mean TBT ms",
      "reused",
      "refused",
    ];
    const file = `goodput-${setting.name.split(/[_ ]/)[0]?.toLowerCase()}-${strictness}-${WORKERS}.svg`;
    attainmentPlot(file, `${setting.name}, ${strictness}`, curves);
    sections.push(
      `## ${setting.name}, ${strictness}: TTFT ≤ ${objective.ttftMs / 1_000} s and mean TBT ≤ ${objective.tbtMs} ms\n\n${table(header, body)}\n\n![attainment against rate](${file})`,
    );
  }
}

const flags = ["workers", "requests", "step"].flatMap((name) =>
  process.argv.includes(`--${name}`) ? [`--${name}`, option(name, "")] : [],
);
publish(
  option("name", "goodput"),
  WORKERS === BASE_WORKERS ? "Goodput of placement policies" : `Goodput of placement policies, ${WORKERS} workers`,
  `Requests per second of which ${100 * SHARE} % or more meet both targets, the refused counted as missed, in the simulator: ${WORKERS} workers, the first ${REQUESTS} requests
of each trace at a multiple of its rate (steps of ${STEP}), workers with the production step scheduler and prefix cache, steps of 512 tokens. azure2023_conv runs OPT-13B on A100s
by DistServe's published coefficients, Mooncake's trace an 8B model on H100s by a roofline. The other columns are those at the goodput.
Every policy sees the same reports, reservations and prefix index.

${sections.join("\n\n")}
`,
  [
    "goodput",
    ...flags,
    ...(process.argv.includes("--few") ? ["--few"] : []),
    ...SETTINGS.filter(({ file }) => file !== "").map(({ flag }) => `--${flag} FILE`),
  ].join(" "),
);

interface Point {
  readonly rate: number;
  readonly attainment: number;
  readonly summary: ReturnType<typeof summarize>;
}

function workersOf({ prefillCount }: Contender): string {
  return prefillCount === 0 ? `${WORKERS} mixed` : `${prefillCount}P ${WORKERS - prefillCount}D`;
}

/** Attainment at the rates that bisection tries, by rate. */
function searchGoodput(setting: Setting, trace: Trace, contender: Contender, objective: Objective): Point[] {
  const [low, high] = setting.factors.map((factor) => (factor * WORKERS) / BASE_WORKERS) as [number, number];
  const factors = Array.from(
    { length: 1 + Math.ceil(Math.log(high / low) / Math.log(STEP)) },
    (_, i) => low * STEP ** i,
  );
  const points: Point[] = [];
  let from = 0;
  let to = factors.length;
  while (from < to) {
    const middle = (from + to) >>> 1;
    const point = runAt(setting, scaleRate(trace, factors[middle] ?? low), contender, objective);
    points.push(point);
    if (point.attainment >= SHARE) from = middle + 1;
    else to = middle;
  }
  return points.sort((a, b) => a.rate - b.rate);
}

function runAt(setting: Setting, trace: Trace, contender: Contender, objective: Objective): Point {
  const { prefillCount } = contender;
  const counts = prefillCount === 0 ? { mixed: WORKERS } : { prefill: prefillCount, decode: WORKERS - prefillCount };
  const result = simulate(
    {
      ...SIMULATION_DEFAULTS,
      profile: setting.profile,
      blockSize: setting.blockSize,
      roles: rolesOf(counts),
      objectives: objective,
      policy: contender.policy(setting.profile.believed),
      // As in production; the others place whatever has room, as theirs do.
      ...(contender.name.startsWith("Kvasir") ? { workerQueue: WORKER_QUEUE_DEFAULTS } : {}),
    },
    trace,
  );
  const summary = summarize(result, objective);
  return { rate: rateOf(trace), attainment: summary.attainment, summary };
}
