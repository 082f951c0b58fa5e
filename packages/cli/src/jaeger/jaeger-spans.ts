import type { SpanRecord } from "@kvasir/telemetry";

const ANSWER_MAX_MS = 5_000;
/** Traces looked at for one request id. */
const TRACES_MAX = 20;

type TagValue = string | number | boolean;

interface KeyValue {
  readonly key: string;
  readonly value: TagValue;
}

/** As Jaeger's query API tells a trace; times in microseconds. */
interface ApiTrace {
  readonly traceID: string;
  readonly spans: readonly {
    readonly spanID: string;
    readonly operationName: string;
    readonly processID: string;
    readonly startTime: number;
    readonly duration: number;
    readonly references: readonly { readonly refType: string; readonly spanID: string }[];
    readonly tags: readonly KeyValue[];
  }[];
  readonly processes: Readonly<Record<string, { readonly serviceName: string; readonly tags: readonly KeyValue[] }>>;
}

/** What a Jaeger knows of a trace; nothing where it knows none, or does not answer. */
export async function jaegerTrace(uiUrl: string, traceId: string): Promise<readonly SpanRecord[]> {
  return (await query(`${uiUrl}/api/traces/${traceId}`)).flatMap((trace) => spansOf(trace));
}

/** Traces of requests with this id, the latest first. */
export async function jaegerTracesOfRequest(uiUrl: string, requestId: string): Promise<readonly string[]> {
  const tags = encodeURIComponent(JSON.stringify({ "kvasir.request_id": requestId }));
  const traces = await query(`${uiUrl}/api/traces?service=kvasir-gateway&limit=${TRACES_MAX}&tags=${tags}`);
  const startOf = ({ spans }: ApiTrace) => Math.min(...spans.map(({ startTime }) => startTime));
  return traces.toSorted((a, b) => startOf(b) - startOf(a)).map(({ traceID }) => traceID);
}

async function query(url: string): Promise<readonly ApiTrace[]> {
  const response = await fetch(url, { signal: AbortSignal.timeout(ANSWER_MAX_MS) }).catch(() => undefined);
  if (response === undefined || !response.ok) return [];
  const { data } = (await response.json()) as { readonly data?: readonly ApiTrace[] | null };
  return data ?? [];
}

function spansOf({ traceID, spans, processes }: ApiTrace): readonly SpanRecord[] {
  return spans.map((span) => {
    const process = processes[span.processID];
    const attributes = recordOf(span.tags);
    const error = attributes["otel.status_description"] ?? (attributes.error === true ? "failed" : undefined);
    const start = BigInt(span.startTime) * 1_000n;
    return {
      traceId: traceID,
      spanId: span.spanID,
      parentSpanId: span.references.find(({ refType }) => refType === "CHILD_OF")?.spanID ?? "",
      name: span.operationName,
      service: (process?.serviceName ?? "").replace(/^kvasir-/, ""),
      instance: String(recordOf(process?.tags ?? [])["service.instance.id"] ?? ""),
      startUnixNanos: `${start}`,
      endUnixNanos: `${start + BigInt(span.duration) * 1_000n}`,
      attributes,
      ...(error === undefined ? {} : { error: String(error) }),
    };
  });
}

function recordOf(entries: readonly KeyValue[]): Record<string, TagValue> {
  return Object.fromEntries(entries.map(({ key, value }) => [key, value]));
}
