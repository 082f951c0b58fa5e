import { Counter, Gauge, Histogram, type Registry } from "prom-client";

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120];
const GAP_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5];

/** What Prometheus learns of the gateway. */
export interface GatewayMetrics {
  readonly requests: Counter<"endpoint" | "status">;
  readonly active: Gauge;
  readonly aborted: Counter;
  readonly placements: Counter<"mode">;
  readonly retries: Counter;
  readonly resumes: Counter;
  readonly promptTokens: Counter;
  readonly cachedTokens: Counter;
  readonly outputTokens: Counter;
  readonly ttft: Histogram;
  readonly tbt: Histogram;
  readonly duration: Histogram;
}

export function createMetrics(registry: Registry): GatewayMetrics {
  const registers = [registry];
  const name = (suffix: string) => `kvasir_gateway_${suffix}`;
  const labelNames = ["endpoint", "status"] as const;
  return {
    requests: new Counter({ name: name("requests_total"), help: "Requests by HTTP status.", labelNames, registers }),
    active: new Gauge({ name: name("active_requests"), help: "Requests being served.", registers }),
    aborted: new Counter({ name: name("aborted_total"), help: "Requests whose client went away.", registers }),
    placements: new Counter({
      name: name("placements_total"),
      help: "Placements used.",
      labelNames: ["mode"],
      registers,
    }),
    retries: new Counter({ name: name("retries_total"), help: "Placements asked for after a failure.", registers }),
    resumes: new Counter({ name: name("resumes_total"), help: "Streams that went on elsewhere.", registers }),
    promptTokens: new Counter({ name: name("prompt_tokens_total"), help: "Prompt tokens accepted.", registers }),
    cachedTokens: new Counter({
      name: name("cached_tokens_total"),
      help: "Prompt tokens whose KV was there and was not computed.",
      registers,
    }),
    outputTokens: new Counter({ name: name("output_tokens_total"), help: "Tokens sent to clients.", registers }),
    ttft: new Histogram({ name: name("ttft_seconds"), help: "Arrival to first token.", buckets: SECONDS, registers }),
    tbt: new Histogram({ name: name("tbt_seconds"), help: "Gap between tokens.", buckets: GAP_SECONDS, registers }),
    duration: new Histogram({ name: name("request_seconds"), help: "Arrival to end.", buckets: SECONDS, registers }),
  };
}
