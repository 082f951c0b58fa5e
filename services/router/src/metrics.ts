import { type PlacementDecision, type RouterState, SERVICE_CLASSES } from "@kvasir/core";
import { Counter, Gauge, Histogram, type Registry } from "prom-client";

const WAIT_BUCKETS_S = [0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export interface RouterMetrics {
  placed(decision: PlacementDecision): void;
  rejected(reason: string, code: string): void;
  retried(): void;
  workerLost(): void;
  streamRefused(): void;
  snapshotWanted(): void;
  /** Time the router needed to take in one request: to place it, or to find that it must wait. */
  decided(seconds: number): void;
}

export function registerMetrics(registry: Registry, state: RouterState): RouterMetrics {
  const registers = [registry];
  const placements = new Counter({
    name: "kvasir_router_placements_total",
    help: "Requests placed, by mode; a retry counts again.",
    labelNames: ["mode"],
    registers,
  });
  for (const mode of ["aggregated", "split"]) placements.inc({ mode }, 0);
  const localPrefills = new Counter({
    name: "kvasir_router_local_prefills_total",
    help: "Requests placed on a decode worker alone, because no prefill worker was left.",
    registers,
  });
  const rejections = new Counter({
    name: "kvasir_router_rejected_total",
    help: "Requests refused, by reason and code.",
    labelNames: ["reason", "code"],
    registers,
  });
  for (const code of ["queue_full", "queue_timeout", "slo_unattainable"]) {
    rejections.inc({ reason: "overloaded", code }, 0);
  }
  rejections.inc({ reason: "unavailable", code: "no_worker" }, 0);
  rejections.inc({ reason: "invalid_request", code: "invalid_request" }, 0);
  const classes = new Counter({
    name: "kvasir_router_served_total",
    help: "Requests placed, by the class they are served as, and whether that is all that can be done for their targets; a retry counts again.",
    labelNames: ["class", "best_effort"],
    registers,
  });
  for (const name of SERVICE_CLASSES) classes.inc({ class: name, best_effort: "no" }, 0);
  const retries = new Counter({
    name: "kvasir_router_retries_total",
    help: "Requests that asked for another placement.",
    registers,
  });
  const lost = new Counter({
    name: "kvasir_router_workers_lost_total",
    help: "Times that an attached worker went silent.",
    registers,
  });
  const refused = new Counter({
    name: "kvasir_router_attach_refused_total",
    help: "Attach streams ended for an old epoch or a gap.",
    registers,
  });
  const decisions = new Histogram({
    name: "kvasir_router_place_seconds",
    help: "Time to take in one request: to place it, or to find that it must wait.",
    buckets: [5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2],
    registers,
  });
  const waits = new Histogram({
    name: "kvasir_router_queue_wait_seconds",
    help: "Wait of placed requests for room.",
    buckets: WAIT_BUCKETS_S,
    registers,
  });
  const predictions = new Histogram({
    name: "kvasir_router_predicted_ttft_seconds",
    help: "Predicted time to first token of placed requests.",
    buckets: WAIT_BUCKETS_S,
    registers,
  });
  new Gauge({
    name: "kvasir_router_queued",
    help: "Requests waiting for a placement.",
    registers,
    collect() {
      this.set(state.queuedCount);
    },
  });
  new Gauge({
    name: "kvasir_router_placed",
    help: "Requests placed and not ended.",
    registers,
    collect() {
      this.set(state.placedCount);
    },
  });
  new Gauge({
    name: "kvasir_router_workers",
    help: "Attached workers, by role and whether they report.",
    labelNames: ["role", "state"],
    registers,
    collect() {
      this.reset();
      for (const role of ["prefill", "decode", "mixed"]) this.set({ role, state: "live" }, 0);
      for (const { facts, isLost } of state.workers()) this.inc({ role: facts.role, state: isLost ? "lost" : "live" });
    },
  });
  new Gauge({
    name: "kvasir_router_stores",
    help: "Attached stores, by whether they report.",
    labelNames: ["state"],
    registers,
    collect() {
      const stores = state.stores();
      const lostCount = stores.filter(({ isLost }) => isLost).length;
      this.set({ state: "live" }, stores.length - lostCount);
      this.set({ state: "lost" }, lostCount);
    },
  });
  new Gauge({
    name: "kvasir_router_reserved_blocks",
    help: "Blocks promised to live requests on the attached workers.",
    registers,
    collect() {
      let blockCount = 0;
      for (const { facts, epoch } of state.workers()) blockCount += state.reserved(facts.workerId, epoch).blockCount;
      this.set(blockCount);
    },
  });
  new Gauge({
    name: "kvasir_router_cached_blocks",
    help: "Blocks that workers have said their prefix caches hold, and stores that they do, each counted once",
    registers,
    collect() {
      this.set(state.cachedBlockCount);
    },
  });
  const snapshots = new Counter({
    name: "kvasir_router_cache_gaps_total",
    help: "Times that a change of a worker's cache was missing and all of it was asked for",
    registers,
  });
  const promptTokens = new Counter({
    name: "kvasir_router_placed_prompt_tokens_total",
    help: "Prompt tokens of placed requests, by whether they are cached where the prompt is computed",
    labelNames: ["cached"],
    registers,
  });
  const plannedFetches = new Counter({
    name: "kvasir_router_planned_fetches_total",
    help: "Placements that have cached KV fetched before the rest of a prompt is computed, by who has it",
    labelNames: ["source"],
    registers,
  });
  for (const source of ["worker", "store"]) plannedFetches.inc({ source }, 0);
  return {
    placed(decision) {
      const [{ uncachedTokenCount, fetch }] = decision.candidates;
      if (fetch !== undefined) plannedFetches.inc({ source: fetch.isStore ? "store" : "worker" });
      promptTokens.inc({ cached: "no" }, uncachedTokenCount);
      promptTokens.inc({ cached: "yes" }, decision.promptTokenCount - uncachedTokenCount);
      placements.inc({ mode: decision.candidates[0].mode });
      if (decision.candidates[0].isLocalPrefill) localPrefills.inc();
      classes.inc({ class: decision.serviceClass, best_effort: decision.isBestEffort ? "yes" : "no" });
      waits.observe(decision.waitedMs / 1_000);
      predictions.observe(decision.predictedTtftMs / 1_000);
    },
    rejected: (reason, code) => rejections.inc({ reason, code }),
    retried: () => retries.inc(),
    workerLost: () => lost.inc(),
    streamRefused: () => refused.inc(),
    snapshotWanted: () => snapshots.inc(),
    decided: (seconds) => decisions.observe(seconds),
  };
}
