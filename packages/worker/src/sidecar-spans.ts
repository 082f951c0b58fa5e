import type { Span } from "@kvasir/proto";
import type { SpanRecord } from "@kvasir/telemetry";

/** A sidecar's span as the other services exchange it. Attributes that are numbers become numbers again. */
export function spanRecordFromSidecar(span: Span, instance: string): SpanRecord {
  const attributes: Record<string, string | number | boolean> = {};
  for (const [key, text] of Object.entries(span.attributes)) {
    const value = Number(text);
    attributes[key] = text.trim() !== "" && Number.isFinite(value) ? value : text;
  }
  return {
    traceId: span.traceId,
    spanId: span.spanId,
    parentSpanId: span.parentSpanId,
    name: span.name,
    service: "sidecar",
    instance,
    startUnixNanos: span.startUnixNanos.toString(),
    endUnixNanos: span.endUnixNanos.toString(),
    attributes,
    ...(span.error === "" ? {} : { error: span.error }),
  };
}
