import { isTraceId, type SpanRecord, spanRecordFromJson } from "@kvasir/telemetry";

/** One service that keeps spans. */
export interface TraceSource {
  readonly name: string;
  /** host:port of its HTTP endpoint. */
  readonly adminAddress: string;
}

export interface CollectedTrace {
  /** Spans of every service that answered, each once. */
  readonly spans: readonly SpanRecord[];
  /** Services that did not answer, with why: their spans are missing. */
  readonly missing: readonly { readonly name: string; readonly why: string }[];
}

/** Answers with the body of a GET, decoded from JSON. Rejects when there is none. */
export type FetchJson = (url: string) => Promise<unknown>;

/** Asks every service for its part of a trace. One that is away costs its own spans only. */
export async function collectTrace(
  sources: readonly TraceSource[],
  traceId: string,
  fetchJson: FetchJson,
): Promise<CollectedTrace> {
  const spans = new Map<string, SpanRecord>();
  const missing: { readonly name: string; readonly why: string }[] = [];
  const answers = await Promise.allSettled(
    sources.map(({ adminAddress }) => fetchJson(`http://${adminAddress}/debug/traces/${traceId}`)),
  );
  for (const [index, answer] of answers.entries()) {
    const name = sources[index]?.name ?? "";
    if (answer.status === "rejected" || !Array.isArray(answer.value)) {
      missing.push({ name, why: answer.status === "rejected" ? reasonOf(answer.reason) : "its answer is no list" });
      continue;
    }
    for (const value of answer.value) {
      const span = spanRecordFromJson(value);
      if (span !== undefined && span.traceId === traceId) spans.set(span.spanId, span);
    }
  }
  return { spans: [...spans.values()], missing };
}

/** Traces of a request by its id, or by that of its answer, as the services that answered know them: the latest of each. */
export async function findTraces(
  sources: readonly TraceSource[],
  requestId: string,
  fetchJson: FetchJson,
): Promise<readonly string[]> {
  const id = encodeURIComponent(requestIdFromText(requestId));
  const answers = await Promise.allSettled(
    sources.map(({ adminAddress }) => fetchJson(`http://${adminAddress}/debug/requests/${id}`)),
  );
  const traceIds = answers.flatMap((answer) => {
    const [latest] = answer.status === "fulfilled" && Array.isArray(answer.value) ? answer.value : [];
    return typeof latest === "string" && isTraceId(latest) ? [latest] : [];
  });
  return [...new Set(traceIds)];
}

/** `chatcmpl-X` and `cmpl-X` are answers to request X. */
export function requestIdFromText(text: string): string {
  return text.trim().replace(/^(?:chat)?cmpl-/, "");
}

/** The trace id in what a person pastes: 32 hex digits, or a whole `traceparent`. */
export function traceIdFromText(text: string): string | undefined {
  const lower = text.trim().toLowerCase();
  return /^(?:00-)?([0-9a-f]{32})(?:-[0-9a-f]{16}-[0-9a-f]{2})?$/.exec(lower)?.[1];
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error && error.cause.message !== "" ? error.cause.message : error.message;
}
