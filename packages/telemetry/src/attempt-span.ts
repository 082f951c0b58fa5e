import { type Attributes, type Context, type Link, type Span, SpanKind, type Tracer, trace } from "@opentelemetry/api";
import { failSpan } from "./in-span.ts";

/** One try to generate at one placement: the span `gateway.generate`. */
export interface Attempt {
  readonly span: Span;
  /** Makes what the attempt asks of others its children. */
  readonly context: Context;
  /** Ends the span; with an error, as failed. */
  end(error?: unknown): void;
}

export function startAttempt(tracer: Tracer, parent: Context, attributes: Attributes): Attempt {
  const span = tracer.startSpan("gateway.generate", { kind: SpanKind.CLIENT, attributes }, parent);
  return {
    span,
    context: trace.setSpan(parent, span),
    end(error) {
      if (error !== undefined) failSpan(span, error);
      span.end();
    },
  };
}

/** For the links of the span that goes on where an attempt failed; it needs nothing of the process in which that one failed. */
export function linkToFailed(attempt: Attempt): Link {
  return { context: attempt.span.spanContext(), attributes: { "kvasir.link": "resumes" } };
}
