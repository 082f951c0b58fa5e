import type { Metadata } from "@grpc/grpc-js";
import { metadataFromContext } from "@kvasir/rpc";
import { failSpan } from "@kvasir/telemetry";
import { type Attributes, type Context, type Span, type Tracer, trace } from "@opentelemetry/api";

/** A span, the context that makes others its children, and what travels to other processes. */
export interface Traced {
  readonly span: Span;
  readonly context: Context;
}

export function startSpan(tracer: Tracer, name: string, parent: Context, attributes: Attributes = {}): Traced {
  const span = tracer.startSpan(name, { attributes }, parent);
  return { span, context: trace.setSpan(parent, span) };
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
