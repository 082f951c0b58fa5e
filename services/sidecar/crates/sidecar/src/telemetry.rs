//! Traces: a small ring that is always there, and OTLP when `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{Status as SpanStatus, TraceId, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor};
use tonic::metadata::{KeyRef, MetadataKey, MetadataMap};

use crate::exports::lock;
use crate::proto::kernel;

/// Finished spans kept: some hundred requests, a few MB.
const RING_SPANS: usize = 5_000;

/// The newest finished spans.
#[derive(Debug, Clone, Default)]
pub struct SpanRing(Arc<Mutex<VecDeque<SpanData>>>);

impl SpanRing {
    /// Those of one trace, oldest first.
    pub fn of_trace(&self, trace_id: &str) -> Vec<kernel::Span> {
        let Ok(trace_id) = TraceId::from_hex(trace_id) else {
            return Vec::new();
        };
        lock(&self.0)
            .iter()
            .filter(|span| span.span_context.trace_id() == trace_id)
            .map(wire_span)
            .collect()
    }
}

impl SpanProcessor for SpanRing {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        let mut ring = lock(&self.0);
        if ring.len() == RING_SPANS {
            ring.pop_front();
        }
        ring.push_back(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn wire_span(span: &SpanData) -> kernel::Span {
    let attributes: HashMap<String, String> = span
        .attributes
        .iter()
        .map(|pair| (pair.key.to_string(), pair.value.to_string()))
        .collect();
    kernel::Span {
        trace_id: span.span_context.trace_id().to_string(),
        span_id: span.span_context.span_id().to_string(),
        parent_span_id: if span.parent_span_id == opentelemetry::trace::SpanId::INVALID {
            String::new()
        } else {
            span.parent_span_id.to_string()
        },
        name: span.name.to_string(),
        start_unix_nanos: unix_nanos(span.start_time),
        end_unix_nanos: unix_nanos(span.end_time),
        attributes,
        error: match &span.status {
            SpanStatus::Error { description } => description.to_string(),
            _ => String::new(),
        },
    }
}

fn unix_nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Milliseconds since 1970, the clock of leases and tickets.
pub fn unix_ms() -> u64 {
    unix_nanos(SystemTime::now()) / 1_000_000
}

/// Tracer, ring and provider of the process.
#[derive(Clone)]
pub struct Telemetry {
    /// For spans.
    pub tracer: SdkTracer,
    /// What finished.
    pub ring: SpanRing,
    provider: SdkTracerProvider,
}

impl Telemetry {
    /// Starts tracing; must run inside the runtime, which the exporter uses. An exporter that cannot be made is logged and left out.
    pub fn start(worker_id: &str) -> Self {
        let ring = SpanRing::default();
        let resource = Resource::builder()
            .with_service_name("kvasir-sidecar")
            .with_attribute(KeyValue::new("service.instance.id", worker_id.to_owned()))
            .build();
        let mut builder = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_span_processor(ring.clone());
        if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some() {
            match opentelemetry_otlp::SpanExporter::builder().with_tonic().build() {
                Ok(exporter) => builder = builder.with_batch_exporter(exporter),
                Err(error) => tracing::warn!(%error, "no OTLP export"),
            }
        }
        let provider = builder.build();
        Self {
            tracer: provider.tracer("kvasir-sidecar"),
            ring,
            provider,
        }
    }

    /// Sends what is left.
    pub fn shut_down(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "tracing ended late");
        }
    }
}

struct MetadataReader<'a>(&'a MetadataMap);

impl Extractor for MetadataReader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .keys()
            .filter_map(|key| match key {
                KeyRef::Ascii(key) => Some(key.as_str()),
                KeyRef::Binary(_) => None,
            })
            .collect()
    }
}

struct MetadataWriter<'a>(&'a mut MetadataMap);

impl Injector for MetadataWriter<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

/// The caller's trace context.
pub fn context_from_metadata(metadata: &MetadataMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &MetadataReader(metadata))
}

/// The context of a `traceparent`; an empty or broken one starts a trace of its own.
pub fn context_from_traceparent(traceparent: &str) -> Context {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

/// Adds a trace context to outgoing metadata.
pub fn inject(context: &Context, metadata: &mut MetadataMap) {
    TraceContextPropagator::new().inject_context(context, &mut MetadataWriter(metadata));
}
