import { setTimeout as sleep } from "node:timers/promises";
import type { StatsResponse } from "@kvasir/proto";
import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import type { StepTimes } from "./engine/step-meter.ts";
import type { Incarnation } from "./incarnation.ts";
import { type RequestMeter, requestMeter } from "./request-meter.ts";
import { registerVllmMetrics } from "./vllm-metrics.ts";

/** One scrape reads the sidecar's counters once: answers are shared for this long. */
const STATS_FRESH_MS = 100;
/** Longest wait of a scrape for a sidecar that hangs. Larger: slow ones are still read; smaller: the worker's own metrics come sooner. */
const STATS_WAIT_MS = 500;

const SIDECAR_COUNTERS = {
  prompt_tokens_computed: ["Prompt tokens computed by this sidecar", (stats) => stats.promptTokensComputed],
  decode_tokens_computed: ["Tokens after the prompt computed by this sidecar", (stats) => stats.decodeTokensComputed],
  kv_bytes_received: ["KV bytes received and verified", (stats) => stats.kvBytesReceived],
  kv_bytes_sent: ["KV bytes sent", (stats) => stats.kvBytesSent],
  kv_bytes_swapped_out: ["KV bytes copied to host memory", (stats) => stats.kvBytesSwappedOut],
  kv_bytes_swapped_in: ["KV bytes copied back from host memory", (stats) => stats.kvBytesSwappedIn],
  frames_refused: ["KV frames refused on arrival", (stats) => stats.framesRefused],
  steps: ["Steps run", (stats) => stats.steps],
} as const satisfies Record<string, readonly [string, (stats: StatsResponse) => bigint]>;

const SIDECAR_GAUGES = {
  exports_open: ["Exports open to pulls", (stats) => stats.exportsOpen],
  fetches_running: ["Fetches that may write", (stats) => stats.fetchesRunning],
  pulls_running: ["Pulls being served", (stats) => stats.pullsRunning],
  slots_used: ["Host slots that hold, or will hold, swapped blocks", (stats) => stats.slotsUsed],
  swaps_running: ["Swaps under way", (stats) => stats.swapsRunning],
  sequences: ["Sequences the device knows", (stats) => stats.sequences],
} as const satisfies Record<string, readonly [string, (stats: StatsResponse) => number]>;

const STEP_SECONDS = [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5];

export interface WorkerMetrics {
  readonly stepAnswered: (times: StepTimes) => void;
  readonly localPrefill: (cause: LocalPrefillCause) => void;
  readonly requests: RequestMeter;
}

/** Why a decode worker computed what a prefill worker should have. */
export type LocalPrefillCause = "no_prefill_worker" | "prefill_lost" | "prefix_hit";

/** Registers the worker's metrics. Everything but the step histogram is read when it is scraped. */
export function registerMetrics(
  registry: Registry,
  modelName: string,
  current: () => Incarnation | undefined,
  restartCount: () => number,
): WorkerMetrics {
  const registers = [registry];
  const stats = cachedStats(current);

  new Gauge({
    name: "kvasir_blocks",
    help: "KV blocks by state. total = free + used; reserved, leased, pinned and cached (KV that may be reused) overlap with them; orphaned must be 0",
    labelNames: ["state"],
    registers,
    collect() {
      const audit = current()?.audit();
      for (const state of ["total", "free", "used", "reserved", "leased", "pinned", "cached", "orphaned"] as const) {
        this.set({ state }, audit?.[state] ?? 0);
      }
    },
  });
  new Counter({
    name: "kvasir_prefix_evicted_blocks_total",
    help: "Blocks whose KV gave way to another sequence, since the sidecar started",
    registers,
    collect() {
      this.reset();
      this.inc(current()?.engine.scheduler.pool.evictedCount ?? 0);
    },
  });
  new Gauge({
    name: "kvasir_leases",
    help: "Leases that hold blocks: reservations on a decode worker, pins on a prefill worker",
    labelNames: ["purpose"],
    registers,
    collect() {
      const leases = [...(current()?.leases.leases() ?? [])];
      for (const purpose of ["reservation", "pin"]) {
        this.set({ purpose }, leases.filter((lease) => lease.purpose === purpose).length);
      }
    },
  });
  new Gauge({
    name: "kvasir_sequences",
    help: "Sequences in the batch (running), and before their first step or their KV (waiting)",
    labelNames: ["state"],
    registers,
    collect() {
      const load = current()?.engine.scheduler.load();
      this.set({ state: "running" }, load?.runningCount ?? 0);
      this.set({ state: "waiting" }, load?.waitingCount ?? 0);
    },
  });
  new Counter({
    name: "kvasir_sidecar_restarts_total",
    help: "Starts of the sidecar after the first",
    registers,
    collect() {
      this.reset();
      this.inc(restartCount());
    },
  });
  new Gauge({
    name: "kvasir_sidecar_epoch",
    help: "Epoch of the running sidecar, 0 while there is none",
    registers,
    collect() {
      this.set(Number(current()?.epoch ?? 0n));
    },
  });
  for (const [name, [help, read]] of Object.entries(SIDECAR_COUNTERS)) {
    new Counter({
      name: `kvasir_sidecar_${name}_total`,
      help: `${help}, since it started`,
      registers,
      async collect() {
        const found = await stats();
        this.reset();
        this.inc(found ? Number(read(found)) : 0);
      },
    });
  }
  for (const [name, [help, read]] of Object.entries(SIDECAR_GAUGES)) {
    new Gauge({
      name: `kvasir_sidecar_${name}`,
      help,
      registers,
      async collect() {
        const found = await stats();
        this.set(found ? read(found) : 0);
      },
    });
  }
  const localPrefills = new Counter({
    name: "kvasir_local_prefills_total",
    help: "Prompts, or rests of prompts, computed by a decode worker in place of a prefill worker, by cause",
    labelNames: ["cause"],
    registers,
  });
  for (const cause of ["no_prefill_worker", "prefill_lost", "prefix_hit"] satisfies LocalPrefillCause[])
    localPrefills.inc({ cause }, 0);
  const steps = new Histogram({
    name: "kvasir_step_seconds",
    help: "Time of a step as this worker sees it (wall), on the device, and of the device waiting for it (idle)",
    labelNames: ["part"],
    buckets: STEP_SECONDS,
    registers,
  });
  const vllm = registerVllmMetrics(registry, modelName, current, async () =>
    Number((await stats())?.promptTokensComputed ?? 0n),
  );
  return {
    requests: requestMeter(registry, vllm),
    localPrefill: (cause) => localPrefills.inc({ cause }),
    stepAnswered({ wallNanos, deviceNanos, idleNanos }) {
      steps.observe({ part: "wall" }, wallNanos / 1e9);
      steps.observe({ part: "device" }, deviceNanos / 1e9);
      if (idleNanos !== undefined) steps.observe({ part: "idle" }, idleNanos / 1e9);
    },
  };
}

function cachedStats(current: () => Incarnation | undefined): () => Promise<StatsResponse | undefined> {
  let readAtMs = Number.NEGATIVE_INFINITY;
  let answer: Promise<StatsResponse | undefined> = Promise.resolve(undefined);
  return () => {
    if (performance.now() - readAtMs > STATS_FRESH_MS) {
      readAtMs = performance.now();
      // A sidecar that just died answers nothing; its successor will.
      const asked = current()?.kernel.stats();
      const late = sleep(STATS_WAIT_MS, undefined, { ref: false });
      answer = asked === undefined ? Promise.resolve(undefined) : Promise.race([asked.catch(() => undefined), late]);
    }
    return answer;
  };
}
