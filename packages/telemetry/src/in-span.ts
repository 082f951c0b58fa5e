import { context, type Span, type SpanOptions, SpanStatusCode, type Tracer, trace } from "@opentelemetry/api";

/** Marks a span as failed, with the reason a person needs. */
export function failSpan(span: Span, error: unknown): void {
  const message = error instanceof Error ? error.message : String(error);
  const reason = typeof error === "object" && error !== null && "reason" in error ? String(error.reason) : "internal";
  span.setAttribute("error.type", reason);
  span.setStatus({ code: SpanStatusCode.ERROR, message });
}

/** Runs `work` inside a new span of the active context; the span ends when `work` does, failed if it throws. */
export async function inSpan<T>(
  tracer: Tracer,
  name: string,
  options: SpanOptions,
  work: (span: Span) => Promise<T>,
): Promise<T> {
  const span = tracer.startSpan(name, options);
  try {
    return await context.with(trace.setSpan(context.active(), span), () => work(span));
  } catch (error) {
    failSpan(span, error);
    throw error;
  } finally {
    span.end();
  }
}
