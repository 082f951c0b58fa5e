/** One finished span, as services exchange it. Times are Unix nanoseconds in decimal, since JSON numbers cannot hold them. */
export interface SpanRecord {
  /** 32 hex digits. */
  readonly traceId: string;
  /** 16 hex digits. */
  readonly spanId: string;
  /** Empty for the span that began the trace. */
  readonly parentSpanId: string;
  readonly name: string;
  /** What kind of process, e.g. `router`. */
  readonly service: string;
  /** Which one, e.g. `router-0`. */
  readonly instance: string;
  readonly startUnixNanos: string;
  readonly endUnixNanos: string;
  readonly attributes: Readonly<Record<string, string | number | boolean>>;
  /** Spans that it goes on from without being their child; absent when there is none. */
  readonly links?: readonly SpanLink[];
  /** Why it failed; absent when it did not. */
  readonly error?: string;
}

export interface SpanLink {
  readonly traceId: string;
  readonly spanId: string;
}

const TRACE_ID = /^(?!0{32})[0-9a-f]{32}$/;

export function isTraceId(text: string): boolean {
  return TRACE_ID.test(text);
}

/** Reads what another service answered; undefined for anything that is no span. Numbers are tolerated where decimals belong. */
export function spanRecordFromJson(value: unknown): SpanRecord | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  const fields = value as Readonly<Record<string, unknown>>;
  const { traceId, spanId, name } = fields;
  const start = nanosText(fields.startUnixNanos);
  const end = nanosText(fields.endUnixNanos);
  if (typeof traceId !== "string" || typeof spanId !== "string" || typeof name !== "string") return undefined;
  if (start === undefined || end === undefined) return undefined;
  const record: SpanRecord = {
    traceId,
    spanId,
    parentSpanId: text(fields.parentSpanId),
    name,
    service: text(fields.service),
    instance: text(fields.instance),
    startUnixNanos: start,
    endUnixNanos: end,
    attributes: attributes(fields.attributes),
    ...links(fields.links),
  };
  return typeof fields.error === "string" && fields.error !== "" ? { ...record, error: fields.error } : record;
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function nanosText(value: unknown): string | undefined {
  if (typeof value === "number" && Number.isInteger(value) && value >= 0) return BigInt(value).toString();
  return typeof value === "string" && /^\d{1,20}$/.test(value) ? value : undefined;
}

function links(value: unknown): { readonly links?: readonly SpanLink[] } {
  if (!Array.isArray(value)) return {};
  const kept = value.filter(
    (link): link is SpanLink => typeof link?.traceId === "string" && typeof link?.spanId === "string",
  );
  return kept.length === 0 ? {} : { links: kept };
}

function attributes(value: unknown): Record<string, string | number | boolean> {
  const kept: Record<string, string | number | boolean> = {};
  if (typeof value !== "object" || value === null) return kept;
  for (const [key, entry] of Object.entries(value)) {
    if (typeof entry === "string" || typeof entry === "number" || typeof entry === "boolean") kept[key] = entry;
  }
  return kept;
}
