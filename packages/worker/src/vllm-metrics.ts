import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import type { Incarnation } from "./incarnation.ts";
import type { VllmMeter } from "./request-meter.ts";

/** Buckets of vLLM's own histograms, so that dashboards made for them fit. */
const TTFT_SECONDS = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
];
const GAP_SECONDS = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80];
const REQUEST_SECONDS = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960];

/**
 * The metrics that dashboards, autoscalers and endpoint pickers scrape from a vLLM engine, under vLLM's names and with its label
 * `model_name`. Those of features that are not here (preemption) are left out rather than told as 0.
 */
export function registerVllmMetrics(
  registry: Registry,
  modelName: string,
  current: () => Incarnation | undefined,
  promptTokensComputed: () => Promise<number>,
): VllmMeter {
  const common = { registers: [registry], labelNames: ["model_name"] as const };
  const labels = { model_name: modelName };
  const gauge = (name: string, help: string, read: (incarnation: Incarnation) => number) => {
    new Gauge({
      ...common,
      name: `vllm:${name}`,
      help,
      collect() {
        const incarnation = current();
        this.set(labels, incarnation === undefined ? 0 : read(incarnation));
      },
    });
  };
  gauge("num_requests_running", "Requests in the running batch", ({ engine }) => engine.scheduler.load().runningCount);
  gauge("num_requests_waiting", "Requests waiting for room, or for their KV", ({ engine }) => {
    return engine.scheduler.load().waitingCount;
  });
  const usage = ({ engine }: Incarnation): number =>
    engine.scheduler.pool.takenCount / engine.scheduler.pool.blockCount;
  gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", usage);
  gauge("gpu_cache_usage_perc", "The same, under its older name", usage);

  new Counter({
    ...common,
    name: "vllm:prompt_tokens_total",
    help: "Prompt tokens computed by this worker",
    async collect() {
      const count = await promptTokensComputed();
      this.reset();
      this.inc(labels, count);
    },
  });
  const generationTokens = new Counter({
    ...common,
    name: "vllm:generation_tokens_total",
    help: "Tokens generated for clients",
  });
  const success = new Counter({
    name: "vllm:request_success_total",
    help: "Requests that ended, by how",
    labelNames: ["model_name", "finished_reason"],
    registers: [registry],
  });
  for (const finished_reason of ["stop", "length", "abort", "error"]) success.inc({ ...labels, finished_reason }, 0);
  generationTokens.inc(labels, 0);

  const histogram = (name: string, help: string, buckets: number[]) => {
    const made = new Histogram({ ...common, name: `vllm:${name}`, help, buckets });
    made.zero(labels);
    return made.labels(labels);
  };
  const ttft = histogram("time_to_first_token_seconds", "Arrival at this worker to first token", TTFT_SECONDS);
  const gap = histogram("inter_token_latency_seconds", "Gap between tokens of one request", GAP_SECONDS);
  const endToEnd = histogram("e2e_request_latency_seconds", "Arrival at this worker to last token", REQUEST_SECONDS);
  const queue = histogram("request_queue_time_seconds", "Wait for room before anything runs", REQUEST_SECONDS);
  const prefill = histogram("request_prefill_time_seconds", "First to last chunk of a prompt", REQUEST_SECONDS);
  const decode = histogram("request_decode_time_seconds", "First to last token", REQUEST_SECONDS);
  const tokens = generationTokens.labels(labels);
  const queries = new Counter({
    ...common,
    name: "vllm:prefix_cache_queries_total",
    help: "Tokens of prompts that were looked up in the prefix cache",
  });
  const hits = new Counter({
    ...common,
    name: "vllm:prefix_cache_hits_total",
    help: "Of those, tokens whose KV was there",
  });
  for (const counter of [queries, hits]) counter.inc(labels, 0);
  return {
    firstToken(seconds) {
      tokens.inc();
      ttft.observe(seconds);
    },
    nextToken(gapSeconds) {
      tokens.inc();
      gap.observe(gapSeconds);
    },
    queued: (seconds) => queue.observe(seconds),
    prefilled: (seconds) => prefill.observe(seconds),
    lookedUp({ promptTokenCount, cachedTokenCount }) {
      queries.inc(labels, promptTokenCount);
      hits.inc(labels, cachedTokenCount);
    },
    generated(outcome, { seconds, decodeSeconds }) {
      success.inc({ ...labels, finished_reason: outcome });
      if (outcome !== "stop" && outcome !== "length") return;
      endToEnd.observe(seconds);
      decode.observe(decodeSeconds);
    },
  };
}
