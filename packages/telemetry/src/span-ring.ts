import { type HrTime, SpanStatusCode } from "@opentelemetry/api";
import type { ReadableSpan, SpanProcessor } from "@opentelemetry/sdk-trace";
import type { SpanRecord } from "./span-record.ts";

const NONE = -1;

/**
 * The last spans that ended in this process, by trace id. Adding is O(1) and converts nothing: a span becomes a record only when
 * somebody reads its trace. The slots of one trace are chained from the oldest to the newest, so overwriting the oldest slot of
 * the ring always takes the head of its trace's chain.
 */
export class SpanRing implements SpanProcessor {
  readonly #identity: { readonly service: string; readonly instance: string };
  readonly #slots: (ReadableSpan | undefined)[];
  readonly #next: Int32Array;
  readonly #chains = new Map<string, { head: number; tail: number }>();
  #cursor = 0;

  constructor(identity: { readonly service: string; readonly instance: string }, spanCount: number) {
    this.#identity = identity;
    this.#slots = new Array<ReadableSpan | undefined>(spanCount).fill(undefined);
    this.#next = new Int32Array(spanCount).fill(NONE);
  }

  onStart(): void {}

  onEnd(span: ReadableSpan): void {
    const slot = this.#cursor;
    this.#cursor = (slot + 1) % this.#slots.length;
    this.#forget(slot);
    this.#slots[slot] = span;
    this.#next[slot] = NONE;
    const { traceId } = span.spanContext();
    const chain = this.#chains.get(traceId);
    if (chain === undefined) {
      this.#chains.set(traceId, { head: slot, tail: slot });
    } else {
      this.#next[chain.tail] = slot;
      chain.tail = slot;
    }
  }

  /** Traces of which at least one span is kept. */
  get traceCount(): number {
    return this.#chains.size;
  }

  /** Spans of one trace that ended here and are still kept, oldest end first. */
  spans(traceId: string): readonly SpanRecord[] {
    const records: SpanRecord[] = [];
    for (let slot = this.#chains.get(traceId)?.head ?? NONE; slot !== NONE; slot = this.#next[slot] ?? NONE) {
      const span = this.#slots[slot];
      if (span !== undefined) records.push(this.#record(span));
    }
    return records;
  }

  /** Traces with a span that has this attribute, each once, the one whose span ended last first. Looks at every span that is kept. */
  tracesWith(attribute: string, value: string): readonly string[] {
    const traceIds = new Set<string>();
    for (let back = 1; back <= this.#slots.length; back++) {
      const span = this.#slots[(this.#cursor - back + this.#slots.length) % this.#slots.length];
      if (span === undefined) break;
      if (span.attributes[attribute] === value) traceIds.add(span.spanContext().traceId);
    }
    return [...traceIds];
  }

  forceFlush(): Promise<void> {
    return Promise.resolve();
  }

  shutdown(): Promise<void> {
    return Promise.resolve();
  }

  #forget(slot: number): void {
    const old = this.#slots[slot];
    if (old === undefined) return;
    const { traceId } = old.spanContext();
    const next = this.#next[slot] ?? NONE;
    const chain = this.#chains.get(traceId);
    if (next === NONE) this.#chains.delete(traceId);
    else if (chain !== undefined) chain.head = next;
  }

  #record(span: ReadableSpan): SpanRecord {
    const { traceId, spanId } = span.spanContext();
    const start = nanosFromHrTime(span.startTime);
    const attributes: Record<string, string | number | boolean> = {};
    for (const [key, value] of Object.entries(span.attributes)) {
      if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") attributes[key] = value;
      else if (value !== undefined && value !== null) attributes[key] = JSON.stringify(value);
    }
    const record: SpanRecord = {
      traceId,
      spanId,
      parentSpanId: span.parentSpanContext?.spanId ?? "",
      name: span.name,
      service: this.#identity.service,
      instance: this.#identity.instance,
      startUnixNanos: start.toString(),
      endUnixNanos: (start + nanosFromHrTime(span.duration)).toString(),
      attributes,
      ...(span.links.length === 0
        ? {}
        : { links: span.links.map(({ context }) => ({ traceId: context.traceId, spanId: context.spanId })) }),
    };
    return span.status.code === SpanStatusCode.ERROR ? { ...record, error: span.status.message ?? "failed" } : record;
  }
}

function nanosFromHrTime([seconds, nanos]: HrTime): bigint {
  return BigInt(seconds) * 1_000_000_000n + BigInt(Math.round(nanos));
}
