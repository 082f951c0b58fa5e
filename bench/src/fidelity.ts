import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type LocalCluster,
  measureSteps,
  type ReplayRecord,
  recordsFrom,
  replayLive,
  startLocalCluster,
} from "@kvasir/cli";
import { prefillMs } from "@kvasir/core";
import { resolveModel } from "@kvasir/models";
import { RouterService } from "@kvasir/proto";
import { createClient, PLAIN } from "@kvasir/rpc";
import {
  deviceOf,
  FIRST_TOKEN_MESSAGES,
  type MeasuredProfile,
  PRODUCTION_DEFAULTS,
  parseTrace,
  rateOf,
  rolesOf,
  scaleRate,
  simulate,
  sliceTrace,
  type Trace,
} from "@kvasir/sim";
import { option, publish, REPOSITORY, table } from "./lib/report.ts";

// A slice of a trace, scaled to this machine, on a live cluster of CPU workers, and in the simulator with what `kvasir profile steps` measured on
// that cluster just before. The trace is azure2023_conv: --azure FILE.
const COUNT = Number(option("requests", "80"));
const LENGTHS = Number(option("lengths", "0.125"));
const LOADS = option("loads", "0.4,0.7").split(",").map(Number);
const MODEL = option("model", "smollm2");
const LAYOUTS = [
  ["1 mixed worker", { mixed: 1, prefill: 0, decode: 0 }],
  ["1 prefill + 1 decode worker", { mixed: 0, prefill: 1, decode: 1 }],
] as const;
const STEP_TOKENS = 512;
const whole = sliceTrace(parseTrace("azure2023_conv", readFileSync(option("azure", ""), "utf8")), 0, COUNT);

let replayCount = 0;

/** What one replay comes to. */
interface Outcome {
  readonly attainment: number;
  readonly refused: number;
  readonly ttftMs: number;
  readonly tbtMs: number;
}

interface Targets {
  readonly ttftMs: number;
  readonly tpotMs: number;
}

const rows: string[][] = [];
const profileRows: string[][] = [];
const model = await resolveModel(MODEL, join(REPOSITORY, ".cache"), (line) => process.stderr.write(`${line}\n`));
for (const [name, counts] of LAYOUTS) {
  const cluster = await startLocalCluster({
    ...{ model: model.directory, servedModelName: model.servedName, port: 0, threadsPerSidecar: 1, ...counts },
    ...{ kvBytes: "512MiB", stepTokens: STEP_TOKENS, logDir: mkdtempSync(join(tmpdir(), "kvasir-bench-")) },
  });
  try {
    const router = createClient(RouterService, cluster.process("router-0").grpcAddress ?? "", PLAIN);
    const describe = () => router.describeCluster({}, { deadlineMs: 5_000 });
    const target = { url: cluster.gatewayUrl, model: model.servedName, describe, seed: 1 << 20, promptTokenMax: 384 };
    const profile = await measureSteps(target);
    router.channel.close();
    profileRows.push(profileRow(name, profile));
    for (const load of LOADS) {
      const trace = scaled(profile, load);
      const targets = targetsOf(profile, trace);
      const records = { live: await replay(cluster, trace, targets), sim: simulated(profile, trace, targets, counts) };
      const live = outcomeOf(records.live, targets);
      const sim = outcomeOf(records.sim, targets);
      const requests = `${rateOf(trace).toFixed(2)}/s`;
      rows.push([
        ...[name, requests, `${targets.ttftMs} / ${targets.tpotMs}`],
        ...[percent(live.attainment), percent(sim.attainment)],
        `${(100 * (sim.attainment - live.attainment)).toFixed(1)}`,
        ...compared(live.ttftMs, sim.ttftMs),
        ...compared(live.tbtMs, sim.tbtMs),
        `${percent(live.refused)} / ${percent(sim.refused)}`,
        answeredInBoth(records.live, records.sim),
      ]);
      process.stderr.write(`${rows.at(-1)?.join(" | ")}\n`);
    }
  } finally {
    await cluster.stop();
  }
}

publish(
  "fidelity",
  "The simulator beside a live cluster",
  `The first ${COUNT} requests of azure2023_conv, prompts and answers ${LENGTHS} of their length, sent to a live cluster of ${model.servedName} on CPU workers with one thread each, at rates
that load its busiest device to ${LOADS.map((load) => percent(load)).join(" and ")}; and the same in the simulator with the profile that \`kvasir profile steps\` measured on that cluster a
moment before. Live times are the client's. Aims: attainment within 5 points, means within 15 %. Gateway, router, workers and client share the machine's
processors; what they take from each other the simulator does not know.

${table(
  [
    ...["workers", "rate", "TTFT / TBT target ms", "in time, live", "simulated", "points"],
    ...["TTFT ms, live", "simulated", "ratio", "TBT ms, live", "simulated", "ratio", "refused, live / simulated"],
    ...["TTFT ms of those answered in both, live / simulated"],
  ],
  rows,
)}

Measured profiles, milliseconds of device time:

${table(["workers", "prompt step", "prompt token", "decode step", "sequence", "token of context", "message", "step overhead"], profileRows)}`,
);
process.exit(0);

/** The slice at the rate that loads the busiest device so much. */
function scaled(profile: MeasuredProfile, load: number): Trace {
  const part = (tokens: number) => Math.max(2, Math.round(tokens * LENGTHS));
  const requests = whole.requests.map((request) => ({
    ...request,
    promptTokenCount: part(request.promptTokenCount),
    outputTokenCount: part(request.outputTokenCount),
  }));
  // Decodes of some requests share a step: half of its fixed part is charged to each.
  const workMs = requests.map(
    ({ promptTokenCount, outputTokenCount }) =>
      prefillMs(profile.prefill, promptTokenCount, 0, STEP_TOKENS) +
      outputTokenCount * (0.5 * profile.decode.fixedMs + profile.decode.decodeMs),
  );
  const meanMs = workMs.reduce((sum, ms) => sum + ms, 0) / workMs.length;
  const trace = { ...whole, requests };
  return scaleRate(trace, (load * 1_000) / meanMs / rateOf(trace));
}

/** Three times that of a prompt of mean length, and one and a half times a lone decode step: some requests miss them. */
function targetsOf(profile: MeasuredProfile, { requests }: Trace): Targets {
  const meanTokens = requests.reduce((sum, { promptTokenCount }) => sum + promptTokenCount, 0) / requests.length;
  const ttftMs =
    3 * prefillMs(profile.prefill, Math.round(meanTokens), 0, STEP_TOKENS) +
    FIRST_TOKEN_MESSAGES.split * profile.messageMs;
  const { decode, stepOverheadMs } = profile;
  const tpotMs = 1.5 * (decode.fixedMs + decode.decodeMs + stepOverheadMs);
  return { ttftMs: Math.ceil(ttftMs), tpotMs: Math.ceil(tpotMs) };
}

function replay(cluster: LocalCluster, trace: Trace, targets: Targets): Promise<ReplayRecord[]> {
  // The simulated cluster has seen nothing: prompts of another replay would be cached.
  const tokens = { tokenBase: 300, tokenRange: 500, salt: ++replayCount };
  return replayLive(trace, {
    url: cluster.gatewayUrl,
    model: model.servedName,
    ...tokens,
    targets,
    timeoutMs: 300_000,
  });
}

function simulated(
  profile: MeasuredProfile,
  trace: Trace,
  { ttftMs, tpotMs }: Targets,
  counts: Parameters<typeof rolesOf>[0],
): ReplayRecord[] {
  const spec = {
    ...PRODUCTION_DEFAULTS,
    profile: deviceOf(profile),
    blockSize: profile.blockSize,
    roles: rolesOf(counts),
    objectives: { ttftMs, tbtMs: tpotMs },
    tokenBudget: STEP_TOKENS,
    rpcMs: profile.messageMs,
    stepOverheadMs: profile.stepOverheadMs,
    link: { bytesPerSecond: 1e9, latencyMs: 0.5 },
  };
  return recordsFrom(simulate(spec, trace));
}

function outcomeOf(records: readonly ReplayRecord[], targets: Targets): Outcome {
  const finished = records.filter(({ outcome }) => outcome === "finished");
  const met = finished.filter(({ ttftMs, tpotMs }) => ttftMs <= targets.ttftMs && tpotMs <= targets.tpotMs).length;
  const mean = (values: readonly number[]) =>
    values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
  return {
    attainment: met / records.length,
    refused: records.filter(({ outcome }) => outcome === "refused").length / records.length,
    ttftMs: mean(finished.map(({ ttftMs }) => ttftMs)),
    tbtMs: mean(finished.map(({ tpotMs }) => tpotMs)),
  };
}

/** Mean TTFTs of the requests that both answered: what is left of the difference without that of who was refused. */
function answeredInBoth(live: readonly ReplayRecord[], sim: readonly ReplayRecord[]): string {
  const pairs = live.flatMap((record, index) => {
    const other = sim[index];
    return record.outcome === "finished" && other?.outcome === "finished"
      ? [[record.ttftMs, other.ttftMs] as const]
      : [];
  });
  const mean = (side: 0 | 1) => pairs.reduce((sum, pair) => sum + pair[side], 0) / Math.max(1, pairs.length);
  return `${mean(0).toFixed(1)} / ${mean(1).toFixed(1)} (${pairs.length})`;
}

function profileRow(name: string, { prefill, decode, messageMs, stepOverheadMs }: MeasuredProfile): string[] {
  const prefillFixedMs = prefill.fixedMs + (prefill.promptStepMs ?? 0);
  const costs = [prefillFixedMs, prefill.promptTokenMs, decode.fixedMs, decode.decodeMs, decode.contextTokenMs];
  return [name, ...costs.map((cost) => cost.toPrecision(3)), messageMs.toFixed(2), stepOverheadMs.toFixed(2)];
}

function compared(live: number, sim: number): string[] {
  return [live.toFixed(1), sim.toFixed(1), (sim / live).toFixed(2)];
}

function percent(share: number): string {
  return `${(100 * share).toFixed(0)} %`;
}
