import { existsSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort, type Jaeger, startJaeger } from "@kvasir/cli";
import type { TreeSpan } from "./span-tree.ts";
import { CACHE_DIR, onFreePorts } from "./support.ts";

/** A Jaeger of a test's own. Throws, with what to do, where its program is missing: a test that needs it then fails. */
export async function startTestJaeger(): Promise<Jaeger> {
  const cached = join(CACHE_DIR, "jaeger/jaeger-all-in-one");
  const binary = process.env.KVASIR_JAEGER ?? (existsSync(cached) ? cached : undefined);
  if (binary === undefined) {
    const why = process.env.KVASIR_JAEGER_MISSING ?? "it was not built yet";
    throw new Error(`this test needs Jaeger: ${why}; npm run jaeger builds it`);
  }
  const logFile = join(mkdtempSync(join(tmpdir(), "kvasir-jaeger-")), "jaeger.log");
  return onFreePorts(async () => {
    const [otlp, otlpHttp, query] = await Promise.all([freePort(), freePort(), freePort()]);
    return startJaeger({ binary, ports: { otlp, otlpHttp, query }, traceCountMax: 1_000, logFile });
  });
}

type TagValue = string | number | boolean;

/** A span as Jaeger's query API tells it. */
export interface JaegerSpan extends TreeSpan {
  readonly traceId: string;
  readonly service: string;
  /** `service.instance.id`. */
  readonly instance: string;
  readonly startMicros: number;
  readonly endMicros: number;
  readonly tags: Readonly<Record<string, TagValue>>;
  readonly events: readonly Readonly<Record<string, TagValue>>[];
  /** Ids of the spans that it follows without being their child. */
  readonly follows: readonly string[];
}

interface KeyValue {
  readonly key: string;
  readonly value: TagValue;
}

interface ApiTrace {
  readonly spans: readonly {
    readonly traceID: string;
    readonly spanID: string;
    readonly operationName: string;
    readonly processID: string;
    readonly startTime: number;
    readonly duration: number;
    readonly references: readonly { readonly refType: string; readonly spanID: string }[];
    readonly tags: readonly KeyValue[];
    readonly logs: readonly { readonly fields: readonly KeyValue[] }[];
  }[];
  readonly processes: Readonly<Record<string, { readonly serviceName: string; readonly tags: readonly KeyValue[] }>>;
}

/** What Jaeger has of a trace by now; nothing while it knows none. */
export async function jaegerTrace(jaeger: Jaeger, traceId: string): Promise<readonly JaegerSpan[]> {
  const response = await fetch(`${jaeger.uiUrl}/api/traces/${traceId}`);
  if (response.status === 404) return [];
  const { data } = (await response.json()) as { readonly data: readonly ApiTrace[] };
  return data.flatMap(({ spans, processes }) =>
    spans.map((span) => {
      const process = processes[span.processID];
      return {
        traceId: span.traceID,
        spanId: span.spanID,
        parentSpanId: span.references.find(({ refType }) => refType === "CHILD_OF")?.spanID ?? "",
        name: span.operationName,
        service: process?.serviceName ?? "",
        instance: String(recordOf(process?.tags ?? [])["service.instance.id"]),
        startMicros: span.startTime,
        endMicros: span.startTime + span.duration,
        tags: recordOf(span.tags),
        events: span.logs.map(({ fields }) => recordOf(fields)),
        follows: span.references.filter(({ refType }) => refType === "FOLLOWS_FROM").map(({ spanID }) => spanID),
      };
    }),
  );
}

function recordOf(entries: readonly KeyValue[]): Record<string, TagValue> {
  return Object.fromEntries(entries.map(({ key, value }) => [key, value]));
}
