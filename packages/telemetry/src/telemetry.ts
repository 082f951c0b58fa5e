import { context, propagation, type Tracer, trace } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-grpc";
import { defaultResource, resourceFromAttributes } from "@opentelemetry/resources";
import { BatchSpanProcessor, type SpanProcessor, TracerProvider } from "@opentelemetry/sdk-trace";
import { ATTR_SERVICE_INSTANCE_ID, ATTR_SERVICE_NAME } from "@opentelemetry/semantic-conventions";
import { type Logger, pino } from "pino";
import { collectDefaultMetrics, Registry } from "prom-client";
import { exportOptions } from "./export-options.ts";
import { FineStart } from "./fine-clock.ts";
import type { SpanRecord } from "./span-record.ts";
import { SpanRing } from "./span-ring.ts";

export interface TelemetryOptions {
  /** Kind of process, e.g. `router`. */
  readonly service: string;
  /** This one, e.g. `router-0`. */
  readonly instanceId: string;
  /** Where to send spans by OTLP over gRPC. Absent: `OTEL_EXPORTER_OTLP_ENDPOINT`, and without it nothing is sent. */
  readonly otlpEndpoint?: string;
  /** Finished spans kept for `spans`. Larger: older requests can still be looked at, for some 1 KB a span. */
  readonly ringSpanCount?: number;
  /** Absent: `KVASIR_LOG_LEVEL`, else `info`. */
  readonly logLevel?: string;
}

/** What every service reports through. */
export interface Telemetry {
  readonly service: string;
  readonly instanceId: string;
  readonly tracer: Tracer;
  readonly registry: Registry;
  readonly logger: Logger;
  /** Spans of a trace that ended in this process and are still kept. */
  spans(traceId: string): readonly SpanRecord[];
  /** Traces of requests with this id, the latest first. */
  tracesOfRequest(requestId: string): readonly string[];
  /** Sends what is left and lets go of the globals. */
  close(): Promise<void>;
}

const RING_SPAN_COUNT = 20_000;
/** An unreachable collector must not hold up the end of a process. */
const FLUSH_MAX_MS = 2_000;

/** Sets the process's tracing (W3C context over async calls), metrics and logs. Call it once, before anything is traced. */
export function startTelemetry(options: TelemetryOptions): Telemetry {
  const { service, instanceId } = options;
  const ring = new SpanRing({ service, instance: instanceId }, options.ringSpanCount ?? RING_SPAN_COUNT);
  const endpoint = options.otlpEndpoint ?? process.env.OTEL_EXPORTER_OTLP_ENDPOINT;
  const { sampler, ...batching } = exportOptions(process.env);
  const spanProcessors: SpanProcessor[] = [new FineStart(), ring];
  if (endpoint) {
    const exporter = new OTLPTraceExporter({ url: endpoint });
    spanProcessors.push(new BatchSpanProcessor({ exporter, ...batching }));
  }
  const provider = new TracerProvider({
    resource: defaultResource().merge(
      resourceFromAttributes({ [ATTR_SERVICE_NAME]: `kvasir-${service}`, [ATTR_SERVICE_INSTANCE_ID]: instanceId }),
    ),
    spanProcessors,
    sampler,
  });
  const contextManager = new AsyncLocalStorageContextManager().enable();
  const areGlobalsOurs = trace.setGlobalTracerProvider(provider);
  if (areGlobalsOurs) {
    context.setGlobalContextManager(contextManager);
    propagation.setGlobalPropagator(new W3CTraceContextPropagator());
  }

  const registry = new Registry();
  collectDefaultMetrics({ register: registry });

  return {
    service,
    instanceId,
    tracer: provider.getTracer(`kvasir-${service}`),
    registry,
    logger: startLogger(options),
    spans: (traceId) => ring.spans(traceId),
    tracesOfRequest: (requestId) => ring.tracesWith("kvasir.request_id", requestId),
    async close() {
      await Promise.race([provider.shutdown().catch(() => undefined), unrefTimeout(FLUSH_MAX_MS)]);
      registry.clear();
      if (!areGlobalsOurs) return;
      trace.disable();
      context.disable();
      propagation.disable();
    },
  };
}

/** JSON lines on stderr, each with the trace it belongs to; stdout is kept for the ready line. */
function startLogger(options: TelemetryOptions): Logger {
  return pino(
    {
      level: options.logLevel ?? (process.env.KVASIR_LOG_LEVEL || "info"),
      base: { service: options.service, instance: options.instanceId },
      timestamp: pino.stdTimeFunctions.isoTime,
      mixin() {
        const traceId = trace.getActiveSpan()?.spanContext().traceId;
        return traceId === undefined ? {} : { traceId };
      },
    },
    pino.destination({ dest: 2, sync: true }),
  );
}

function unrefTimeout(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms).unref());
}
