import { writeFileSync } from "node:fs";
import { defineOptions, type OptionValues, runMain } from "@kvasir/config";
import { DEVICE_PROFILES, PRODUCTION_DEFAULTS, rolesOf, scaleRate, simulate, type Trace } from "@kvasir/sim";
import { chosenProfile } from "./device-profiles.ts";
import { htmlReport } from "./html-report.ts";
import { replayLive } from "./replay-live.ts";
import { type RatePoint, type ReplayRecord, ratePointOf, recordsFrom, replaySummary } from "./replay-record.ts";
import { readTrace } from "./trace-file.ts";

const SPECS = {
  trace: {
    type: "string",
    env: "KVASIR_REPLAY_TRACE",
    positional: true,
    required: true,
    help: "File with the columns of Azure's, Mooncake's or BurstGPT's traces, or JSON lines; may be gzipped.",
  },
  sim: { type: "boolean", env: "KVASIR_REPLAY_SIM", help: "Simulate the cluster instead of asking a gateway." },
  url: {
    type: "string",
    env: "KVASIR_REPLAY_URL",
    default: "http://127.0.0.1:8000",
    help: "Gateway to send requests to.",
  },
  model: { type: "string", env: "KVASIR_REPLAY_MODEL", default: "smollm2", help: "Model that requests name." },
  ratePercent: {
    type: "integer",
    env: "KVASIR_REPLAY_RATE_PERCENT",
    default: 100,
    min: 1,
    help: "How fast requests come, of the trace's own rate.",
  },
  rates: {
    type: "string",
    env: "KVASIR_REPLAY_RATES",
    default: "",
    help: "More rates to replay at before, in percent as --rate-percent, e.g. 50,200: the report then shows attainment against rate.",
  },
  lengthPercent: {
    type: "integer",
    env: "KVASIR_REPLAY_LENGTH_PERCENT",
    default: 100,
    min: 1,
    help: "How long prompts and answers are, of the trace's own lengths.",
  },
  count: { type: "integer", env: "KVASIR_REPLAY_COUNT", default: 0, min: 0, help: "First requests only; 0: all." },
  ttftMs: {
    type: "integer",
    env: "KVASIR_REPLAY_TTFT_MS",
    default: 2_000,
    min: 1,
    help: "Target for the first token.",
  },
  tpotMs: { type: "integer", env: "KVASIR_REPLAY_TPOT_MS", default: 100, min: 1, help: "Target for the mean gap." },
  withoutTargets: {
    type: "boolean",
    env: "KVASIR_REPLAY_WITHOUT_TARGETS",
    help: "Do not tell the router the targets; only measure against them.",
  },
  profile: {
    type: "string",
    env: "KVASIR_REPLAY_PROFILE",
    default: "a100-opt-13b",
    help: `Simulated devices: ${Object.keys(DEVICE_PROFILES).join(", ")}, or a file made by kvasir profile steps.`,
  },
  mixed: {
    type: "integer",
    env: "KVASIR_REPLAY_MIXED",
    default: 0,
    min: 0,
    help: "Simulated workers for both phases.",
  },
  prefill: { type: "integer", env: "KVASIR_REPLAY_PREFILL", default: 1, min: 0, help: "Simulated prefill workers." },
  decode: { type: "integer", env: "KVASIR_REPLAY_DECODE", default: 1, min: 0, help: "Simulated decode workers." },
  blockSize: {
    type: "integer",
    env: "KVASIR_REPLAY_BLOCK_SIZE",
    default: 0,
    min: 0,
    help: "Tokens in a block; 0: 64, or what the profile measured.",
  },
  seed: { type: "integer", env: "KVASIR_REPLAY_SEED", default: 1, min: 0, help: "Of what is random in a simulation." },
  report: { type: "string", env: "KVASIR_REPLAY_REPORT", help: "Write a page with plots to this file." },
  records: {
    type: "string",
    env: "KVASIR_REPLAY_RECORDS",
    help: "Write each request's times to this file, JSON lines.",
  },
} as const;

const options = defineOptions("kvasir replay", "replays a trace, simulated or against a gateway", SPECS);

await runMain(options, async (values) => {
  const trace = readTrace({
    file: values.trace,
    rate: values.ratePercent / 100,
    count: values.count,
    lengths: values.lengthPercent / 100,
  });
  const targets = { ttftMs: values.ttftMs, tpotMs: values.tpotMs };
  const told = values.withoutTargets === true ? undefined : targets;
  const run = async (at: Trace): Promise<ReplayRecord[]> => {
    if (values.sim === true) return simulated(at, values);
    const [tokenBase, tokenRange] = [300, 500];
    const url = values.url.replace(/\/$/, "");
    // Each replay asks what the cluster has not seen.
    const options = { url, model: values.model, tokenBase, tokenRange, salt: Date.now() % 2 ** 31 };
    return replayLive(at, { ...options, targets: told, timeoutMs: 600_000 });
  };
  const rates: RatePoint[] = [];
  for (const percent of ratesFrom(values.rates)) {
    rates.push(ratePointOf(await run(scaleRate(trace, percent / values.ratePercent)), targets));
    const { rate, attainment } = rates.at(-1) as RatePoint;
    process.stdout.write(`${percent} %: ${rate.toFixed(2)}/s, ${(100 * attainment).toFixed(1)} % met both targets\n`);
  }
  const records = await run(trace);
  rates.push(ratePointOf(records, targets));
  rates.sort((a, b) => a.rate - b.rate);
  process.stdout.write(replaySummary(records, targets));
  const [refused] = records.filter(({ outcome }) => outcome !== "finished");
  if (refused !== undefined && refused.reason !== "") process.stdout.write(`first not served: ${refused.reason}\n`);
  if (values.records !== undefined) {
    writeFileSync(values.records, `${records.map((record) => JSON.stringify(record)).join("\n")}\n`);
  }
  if (values.report !== undefined) {
    const title = `${trace.name}, ${values.sim === true ? `simulated on ${values.profile}` : values.url}`;
    writeFileSync(values.report, htmlReport(title, records, targets, rates));
    process.stdout.write(`report: ${values.report}\n`);
  }
});

function ratesFrom(text: string): number[] {
  const rates = text.split(",").filter((part) => part.trim() !== "");
  return rates.map((part) => {
    const percent = Number(part);
    if (!(percent > 0)) throw new Error(`rates has ${JSON.stringify(part)}; use percentages above 0, e.g. 50,200`);
    return percent;
  });
}

function simulated(trace: Trace, values: OptionValues<typeof SPECS>): ReplayRecord[] {
  const { profile, measured } = chosenProfile(values.profile);
  const { mixed, prefill, decode, seed } = values;
  const blockSize = values.blockSize || (measured?.blockSize ?? PRODUCTION_DEFAULTS.blockSize);
  const roles = mixed > 0 ? rolesOf({ mixed }) : rolesOf({ prefill, decode });
  const objectives = values.withoutTargets === true ? undefined : { ttftMs: values.ttftMs, tbtMs: values.tpotMs };
  const spec = { ...PRODUCTION_DEFAULTS, ...measured, seed, profile, roles, blockSize, objectives };
  return recordsFrom(simulate(spec, trace));
}
