import type { Metadata } from "@grpc/grpc-js";
import { metadataFromContext } from "@kvasir/rpc";
import { failSpan } from "@kvasir/telemetry";
import { type Attributes, type Context, type Span, type Tracer, trace } from "@opentelemetry/api";
import type { Engine } from "./engine/engine.ts";

/** A span, the context that makes others its children, and what travels to other processes. */
export interface Traced {
  readonly span: Span;
  readonly context: Context;
}

export function startSpan(tracer: Tracer, name: string, parent: Context, attributes: Attributes = {}): Traced {
  const span = tracer.startSpan(name, { attributes }, parent);
  return { span, context: trace.setSpan(parent, span) };
}

/** The span `prefill.queue`: from a prompt's arrival until its first chunk is on its way to the device. */
export function startQueueSpan(tracer: Tracer, prefill: Traced, engine: Engine): Traced {
  const { queuedPromptTokenCount, waitingCount } = engine.scheduler.load();
  return startSpan(tracer, "prefill.queue", prefill.context, {
    "kvasir.queued_tokens": queuedPromptTokenCount,
    "kvasir.waiting": waitingCount,
  });
}

/** gRPC metadata that carries the span. */
export function metadataOf(traced: Traced): Metadata {
  return metadataFromContext(traced.context);
}

/** The span as a `traceparent` header, empty when nothing is recorded. */
export function traceparentOf(traced: Traced): string {
  const value = metadataOf(traced).get("traceparent")[0];
  return typeof value === "string" ? value : "";
}

export function endSpan(span: Span, error?: Error): void {
  if (error) failSpan(span, error);
  span.end();
}
