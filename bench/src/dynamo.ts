import { readFileSync } from "node:fs";
import { GoodputPolicy, type PlacementPolicy } from "@kvasir/core";
import {
  DEVICE_PROFILES,
  type DeviceProfile,
  DynamoRouter,
  parseTrace,
  rateOf,
  rolesOf,
  SIMULATION_DEFAULTS,
  scaleRate,
  simulate,
  sliceTrace,
  type Trace,
} from "@kvasir/sim";
import { type MockerCluster, mockerReplay, mooncakeLines } from "./lib/dynamo-mocker.ts";
import { option, publish, table } from "./lib/report.ts";

// NVIDIA Dynamo's own simulator and ours on the same traces with its timing of steps and its router's rule: do they tell the same story? Then what
// each router's placements are worth at the same targets. The traces are public; give their files.
const REQUESTS = Number(option("requests", "4000"));
const WORKERS = 16;
const SHARE = 0.9;
const STEP = 1.1;
/** Tokens that the mocker computes in a pass, at most. */
const PASS_TOKENS = 8_192;
const profile = DEVICE_PROFILES["dynamo-mocker"] as DeviceProfile;
const AGGREGATED: MockerCluster = { mixed: WORKERS };
const SPLIT: MockerCluster = { prefill: WORKERS / 2, decode: WORKERS / 2 };

interface Setting {
  readonly name: string;
  readonly trace: Trace;
  readonly speeds: readonly number[];
  readonly targets: { readonly ttftMs: number; readonly tbtMs: number };
  /** Multiples of the trace's rate between which the goodput is sought. */
  readonly factors: readonly [number, number];
}

const SETTINGS: readonly Setting[] = [
  {
    name: "Mooncake conversation",
    trace: read("Mooncake conversation", option("mooncake", "")),
    speeds: [1, 4, 8],
    targets: { ttftMs: 2_000, tbtMs: 25 },
    factors: [4, 40],
  },
  {
    name: "azure2023_conv",
    trace: read("azure2023_conv", option("azure", "")),
    speeds: [1, 16, 48],
    targets: { ttftMs: 500, tbtMs: 25 },
    factors: [16, 256],
  },
];

/** What a run comes to: means over requests and over gaps, and the share that met both targets. */
interface Story {
  readonly ttftMs: number;
  readonly gapMs: number;
  readonly reuse: number;
  readonly attainment: number;
}

const storyRows: string[][] = [];
const goodputRows: string[][] = [];
for (const setting of SETTINGS) {
  const { name, trace, speeds } = setting;
  for (const [layout, cluster] of [
    [`${WORKERS} of both phases`, AGGREGATED],
    [`8 + 8`, SPLIT],
  ] as const) {
    for (const speed of speeds) {
      const theirs = mocker(setting, cluster, speed);
      const ours = simulated(setting, cluster, speed, new DynamoRouter(), undefined);
      storyRows.push([
        name,
        layout,
        `${(rateOf(trace) * speed).toFixed(1)}/s`,
        ...compared(theirs.ttftMs, ours.ttftMs),
        ...compared(theirs.gapMs, ours.gapMs, 2),
        `${(100 * theirs.reuse).toFixed(1)} / ${(100 * ours.reuse).toFixed(1)} %`,
      ]);
      process.stderr.write(`${storyRows.at(-1)?.join(" | ")}\n`);
    }
    const contenders = [
      ["Dynamo's router in Dynamo's simulator", (speed: number) => mocker(setting, cluster, speed)],
      ["Dynamo's rule in ours", (speed: number) => simulated(setting, cluster, speed, new DynamoRouter(), undefined)],
      [
        "Kvasir's policy in ours",
        (speed: number) =>
          simulated(setting, cluster, speed, new GoodputPolicy({ stepTokenCount: PASS_TOKENS }), setting.targets),
      ],
    ] as const;
    const rates = contenders.map(([who, run]) => [who, goodput(setting, run)] as const);
    const first = rates[0]?.[1] ?? 0;
    for (const [who, rate] of rates) {
      goodputRows.push([name, layout, who, rate.toFixed(1), first === 0 ? "–" : `${(rate / first).toFixed(2)}x`]);
      process.stderr.write(`${goodputRows.at(-1)?.join(" | ")}\n`);
    }
  }
}

publish(
  "dynamo",
  "Beside NVIDIA Dynamo's own simulator and router",
  `The first ${REQUESTS.toLocaleString("en")} requests of each trace, in both simulators: ai-dynamo-runtime 1.6.1 (\`run_mocker_trace_replay\`, \`router_mode=kv_router\`, defaults), and
ours with its timing of a pass, its 8,192 tokens a pass, its 16,384 blocks of 64 tokens, one pass at a time, links without delay, and its router's rule
(\`DynamoRouter\`). Of a split cluster the mocker's first token is the one that the decode worker's first pass gives; so it is counted here for ours too. Means over
requests (TTFT) and over all gaps between tokens (TBT): theirs, ours, and ours over theirs.

${table(["trace", "workers", "rate", "TTFT ms, theirs", "ours", "ratio", "TBT ms, theirs", "ours", "ratio", "reused, theirs / ours"], storyRows)}

## Goodput at the same targets

Requests per second of which ${100 * SHARE} % or more meet both targets (Mooncake: TTFT ≤ 2 s, azure2023_conv: ≤ 0.5 s; mean TBT ≤ 25 ms), refused ones counted as
missed, by bisection over rates in steps of ${STEP}.

${table(["trace", "workers", "who", "goodput/s", "of Dynamo's"], goodputRows)}`,
);

function read(name: string, file: string): Trace {
  if (file === "") throw new Error("name the traces: --mooncake FILE --azure FILE");
  const whole = parseTrace(name, readFileSync(file, "utf8"));
  // Both simulators read the very same rows.
  return parseTrace(name, mooncakeLines(sliceTrace(whole, 0, REQUESTS)));
}

function mocker({ trace, targets }: Setting, cluster: MockerCluster, speed: number): Story {
  const run = mockerReplay(trace, cluster, speed, true);
  if (run === undefined) throw new Error("NVIDIA Dynamo's wheel is not installed; run it by npm run bench -- dynamo");
  const rows = run.requests.map(([ttftMs, gapMs, tokens, reused]) => ({ ttftMs, gapMs, gaps: tokens - 1, reused }));
  return story(rows, trace, targets);
}

function simulated(
  { trace, targets }: Setting,
  cluster: MockerCluster,
  speed: number,
  policy: PlacementPolicy,
  objectives: Setting["targets"] | undefined,
): Story {
  const spec = {
    ...SIMULATION_DEFAULTS,
    profile,
    policy,
    objectives,
    roles: rolesOf(cluster),
    tokenBudget: PASS_TOKENS,
    stepsInFlightMax: 1,
    stepOverheadMs: 0,
    rpcMs: 0,
    reportMs: 20,
    link: { bytesPerSecond: 1e15, latencyMs: 0 },
  };
  const { requests } = simulate(spec, scaleRate(trace, speed));
  const rows = requests.flatMap((request) => {
    const { firstTokenAt, secondTokenAt, lastTokenAt, arrivedAt, tokenCount, outcome, cachedTokenCount } = request;
    if (outcome !== "finished" || firstTokenAt === undefined || lastTokenAt === undefined) return [];
    const isSplit = request.decision?.candidates[0].prefill !== undefined && secondTokenAt !== undefined;
    const from = isSplit ? secondTokenAt : firstTokenAt;
    const gaps = tokenCount - (isSplit ? 2 : 1);
    const gapMs = gaps > 0 ? (lastTokenAt - from) / 1e6 / gaps : 0;
    return [{ ttftMs: (from - arrivedAt) / 1e6, gapMs, gaps: Math.max(0, gaps), reused: cachedTokenCount }];
  });
  return story(rows, trace, targets);
}

function story(
  rows: readonly { readonly ttftMs: number; readonly gapMs: number; readonly gaps: number; readonly reused: number }[],
  { requests }: Trace,
  { ttftMs, tbtMs }: Setting["targets"],
): Story {
  const sum = (of: (row: (typeof rows)[number]) => number) => rows.reduce((total, row) => total + of(row), 0);
  return {
    ttftMs: sum((row) => row.ttftMs) / rows.length,
    gapMs: sum((row) => row.gapMs * row.gaps) / sum((row) => row.gaps),
    reuse: sum((row) => row.reused) / requests.reduce((total, { promptTokenCount }) => total + promptTokenCount, 0),
    attainment: rows.filter((row) => row.ttftMs <= ttftMs && row.gapMs <= tbtMs).length / requests.length,
  };
}

function compared(theirs: number, ours: number, digits = 0): string[] {
  return [theirs.toFixed(digits), ours.toFixed(digits), (ours / theirs).toFixed(3)];
}

/** The highest rate with enough attainment; 0: not even the lowest that is tried. */
function goodput({ trace, factors: [low, high] }: Setting, run: (speed: number) => Story): number {
  const count = 1 + Math.ceil(Math.log(high / low) / Math.log(STEP));
  let from = 0;
  let to = count;
  while (from < to) {
    const middle = (from + to) >>> 1;
    if (run(low * STEP ** middle).attainment >= SHARE) from = middle + 1;
    else to = middle;
  }
  return from === 0 ? 0 : rateOf(trace) * low * STEP ** (from - 1);
}
