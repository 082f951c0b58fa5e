import { join } from "node:path";
import { TLS_OPTIONS } from "@kvasir/config";
import { withoutPassword } from "@kvasir/state";
import type { SpanRecord } from "@kvasir/telemetry";
import { collectTrace, findTraces, requestIdFromText, traceIdFromText } from "./collect-trace.ts";
import { CLUSTER_OPTIONS, type ClusterValues, connectCluster } from "./connect-cluster.ts";
import { jaegerTrace, jaegerTracesOfRequest } from "./jaeger/jaeger-spans.ts";
import { runningJaeger } from "./jaeger/running-jaeger.ts";
import { type Member, membersOf } from "./running-cluster.ts";

const CACHE = process.env.KVASIR_CACHE || join(import.meta.dirname, "../../../.cache");
const ANSWER_MAX_MS = 5_000;

/** Flags of the commands that read one request's spans. */
export const TRACE_OPTIONS = {
  traceId: {
    type: "string",
    env: "KVASIR_TRACE_ID",
    positional: true,
    required: true,
    help: "The request's x-kvasir-trace-id, its x-request-id, the id of its answer, or a traceparent.",
  },
  ...CLUSTER_OPTIONS,
  ...TLS_OPTIONS,
} as const;

type TraceValues = ClusterValues & { readonly traceId: string };

/**
 * The spans of one request: from every service of the cluster, and from the Jaeger of `npm run jaeger` those that services have forgotten, or took
 * along when they ended. Rejects when there is none; services that did not answer are named on stderr.
 */
export async function clusterTrace(values: TraceValues): Promise<readonly SpanRecord[]> {
  const jaeger = await runningJaeger(join(CACHE, "run"));
  const { sources, where } = await runningServices(values, jaeger !== undefined);
  const traceId = traceIdFromText(values.traceId) ?? (await traceOfRequest(values.traceId, sources, jaeger));
  const { spans, missing } = await collectTrace(sources, traceId, fetchJson);
  for (const { name, why } of missing) process.stderr.write(`${name} did not answer, its spans are missing: ${why}\n`);
  const known = new Set(spans.map(({ spanId }) => spanId));
  const kept = jaeger === undefined ? [] : await jaegerTrace(jaeger.uiUrl, traceId);
  const all = [...spans, ...kept.filter(({ spanId }) => !known.has(spanId))];
  if (all.length > 0) return all;
  const names = [...sources.map(({ name }) => name), ...(jaeger === undefined ? [] : [`Jaeger at ${jaeger.uiUrl}`])];
  throw new Error(
    `none of ${names.join(", ")} in ${where} has spans of trace ${traceId}; a service keeps its latest 20000`,
  );
}

/** Services that are registered. Where none is, `isEnough` says whether somebody else can be asked. */
async function runningServices(
  values: TraceValues,
  isEnough: boolean,
): Promise<{ readonly sources: readonly Member[]; readonly where: string }> {
  try {
    const { state, redisUrl, cluster } = await connectCluster(values);
    try {
      const where = `cluster ${cluster} at ${withoutPassword(redisUrl)}`;
      const sources = await membersOf(state);
      if (sources.length === 0) throw new Error(`no service is registered in ${where}; start one with npm run up`);
      return { sources, where };
    } finally {
      await state.close();
    }
  } catch (error) {
    if (!isEnough) throw error;
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}; only Jaeger is asked\n`);
    return { sources: [], where: "no cluster" };
  }
}

/** The trace of a request, asked of the services that begin and place requests, then of a Jaeger. */
async function traceOfRequest(
  id: string,
  sources: readonly Member[],
  jaeger: { readonly uiUrl: string } | undefined,
): Promise<string> {
  const asked = sources.filter(({ kind }) => kind === "gateway" || kind === "router");
  const found = await findTraces(asked, id, fetchJson);
  if (found.length > 1) process.stderr.write(`${id} is the id of several requests: ${found.join(", ")}\n`);
  const [traceId] =
    jaeger === undefined || found.length > 0 ? found : await jaegerTracesOfRequest(jaeger.uiUrl, requestIdFromText(id));
  if (traceId !== undefined) return traceId;
  const names = [...asked.map(({ name }) => name), ...(jaeger === undefined ? [] : [`Jaeger at ${jaeger.uiUrl}`])];
  throw new Error(
    `${JSON.stringify(id)} is no trace id and no id of a request that ${names.join(", ")} remember; use its x-kvasir-trace-id or x-request-id`,
  );
}

async function fetchJson(url: string): Promise<unknown> {
  const response = await fetch(url, { signal: AbortSignal.timeout(ANSWER_MAX_MS) });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return response.json();
}
