import { TLS_OPTIONS } from "@kvasir/config";
import { withoutPassword } from "@kvasir/state";
import type { SpanRecord } from "@kvasir/telemetry";
import { collectTrace, traceIdFromText } from "./collect-trace.ts";
import { CLUSTER_OPTIONS, type ClusterValues, connectCluster } from "./connect-cluster.ts";
import { membersOf } from "./running-cluster.ts";

const ANSWER_MAX_MS = 5_000;

/** Flags of the commands that read one request's spans. */
export const TRACE_OPTIONS = {
  traceId: {
    type: "string",
    env: "KVASIR_TRACE_ID",
    positional: true,
    required: true,
    help: "The request's x-kvasir-trace-id (32 hex digits), or a traceparent.",
  },
  ...CLUSTER_OPTIONS,
  ...TLS_OPTIONS,
} as const;

type TraceValues = ClusterValues & { readonly traceId: string };

/** The spans of one request, from every service of the cluster. Rejects when there is none; those that did not answer are named on stderr. */
export async function clusterTrace(values: TraceValues): Promise<readonly SpanRecord[]> {
  const traceId = traceIdFromText(values.traceId);
  if (traceId === undefined) {
    throw new Error(`${JSON.stringify(values.traceId)} is no trace id; use the 32 hex digits of x-kvasir-trace-id`);
  }
  const { state, redisUrl, cluster } = await connectCluster(values);
  try {
    const sources = await membersOf(state);
    const { spans, missing } = await collectTrace(sources, traceId, fetchJson);
    for (const { name, why } of missing)
      process.stderr.write(`${name} did not answer, its spans are missing: ${why}\n`);
    if (spans.length > 0) return spans;
    const where = `cluster ${cluster} at ${withoutPassword(redisUrl)}`;
    throw new Error(
      sources.length === 0
        ? `no service is registered in ${where}; start one with npm run up`
        : `none of ${sources.map((source) => source.name).join(", ")} in ${where} has spans of trace ${traceId}; each keeps its latest 20000`,
    );
  } finally {
    await state.close();
  }
}

async function fetchJson(url: string): Promise<unknown> {
  const response = await fetch(url, { signal: AbortSignal.timeout(ANSWER_MAX_MS) });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return response.json();
}
