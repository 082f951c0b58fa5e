//! A pull into this sidecar, from the worker's request to its end.

use opentelemetry::trace::{SpanKind, Status as SpanStatus, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use tokio::sync::mpsc;
use tonic::Status;

use crate::connections::Connections;
use crate::errors::CallError;
use crate::exports::LeaseId;
use crate::fetches::WriteGate;
use crate::proto::kernel::{FetchRequest, FetchResponse};
use crate::proto::transfer::CodecLevel;
use crate::receiving::Receiving;
use crate::state::Sidecar;
use crate::ticket::{self, ID_BYTES};

/// A fetch whose request was checked.
pub struct Fetch {
    pub(crate) request: FetchRequest,
    pub(crate) tenant_scope: [u8; ID_BYTES],
    pub(crate) gate: WriteGate,
    context: Context,
}

/// Checks a request against the pool.
///
/// # Errors
/// [`CallError::InvalidRequest`], or [`CallError::LeaseExpired`] when the lease was fenced already.
pub fn prepare(sidecar: &Sidecar, request: FetchRequest, context: Context) -> Result<Fetch, CallError> {
    let invalid = |field: &'static str, message: String| CallError::InvalidRequest {
        field: field.into(),
        message,
    };
    let lease_id: LeaseId = ticket::id("lease_id", &request.lease_id)?;
    let tenant_scope = ticket::id("tenant_scope", &request.tenant_scope)?;
    let block_size = sidecar.frame_shape().block_size;
    let (begin, end) = (request.token_begin, request.token_end);
    if begin >= end || !begin.is_multiple_of(block_size) {
        return Err(invalid(
            "token_begin",
            format!("{begin}..{end} is not a range that begins on a block of {block_size}"),
        ));
    }
    if (request.block_ids.len() as u64) < u64::from(end).div_ceil(u64::from(block_size)) {
        let message = format!(
            "has {} blocks of {block_size} for {end} tokens",
            request.block_ids.len()
        );
        return Err(invalid("block_ids", message));
    }
    if let Some(block) = request
        .block_ids
        .iter()
        .find(|block| **block >= sidecar.pool.block_count())
    {
        return Err(invalid(
            "block_ids",
            format!("names block {block} of {}", sidecar.pool.block_count()),
        ));
    }
    if request.ticket.is_none() {
        return Err(invalid("ticket", "is missing".into()));
    }
    if request.level() != CodecLevel::Raw {
        return Err(invalid("level", format!("is {}; use RAW", request.level)));
    }
    let gate = sidecar.fetches.open(lease_id).ok_or_else(fenced)?;
    Ok(Fetch {
        request,
        tenant_scope,
        gate,
        context,
    })
}

/// Runs a fetch to its end; progress and the error, if any, go to `reports`.
pub async fn run(
    sidecar: &Sidecar,
    connections: &Connections,
    fetch: Fetch,
    reports: mpsc::Sender<Result<FetchResponse, Status>>,
) {
    let tracer = &sidecar.telemetry.tracer;
    let span = tracer
        .span_builder("kv.pull")
        .with_kind(SpanKind::Client)
        .start_with_context(tracer, &fetch.context);
    let context = fetch.context.with_span(span);
    let mut receiving = Receiving::new(sidecar, fetch.request.token_begin);
    let mut fenced_watch = fetch.gate.watch();
    let outcome = tokio::select! {
        outcome = receiving.pull(connections, &fetch, &context, &reports) => outcome,
        // The registry keeps the sender as long as a fence can come; its end means the same.
        _ = fenced_watch.wait_for(|fenced| *fenced) => Err(fenced()),
        () = reports.closed() => Err(CallError::Cancelled("the worker closed the fetch".into())),
    };
    let span = context.span();
    let seconds = receiving.transfer_nanos as f64 / 1e9;
    span.set_attribute(KeyValue::new("kvasir.bytes", receiving.bytes as i64));
    span.set_attribute(KeyValue::new("kvasir.frames", i64::from(receiving.frames)));
    span.set_attribute(KeyValue::new(
        "kvasir.tokens",
        i64::from(receiving.next_token - fetch.request.token_begin),
    ));
    span.set_attribute(KeyValue::new("kvasir.level", fetch.request.level().as_str_name()));
    span.set_attribute(KeyValue::new("kvasir.source", fetch.request.source_address.clone()));
    span.set_attribute(KeyValue::new("kvasir.transfer_ms", seconds * 1e3));
    span.set_attribute(KeyValue::new(
        "kvasir.source_wait_ms",
        receiving.wait_nanos as f64 / 1e6,
    ));
    if seconds > 0.0 {
        span.set_attribute(KeyValue::new("kvasir.gb_per_s", receiving.bytes as f64 / 1e9 / seconds));
    }
    if let Err(error) = outcome {
        if matches!(error, CallError::Unavailable(_) | CallError::PermissionDenied(_)) {
            connections.forget(&fetch.request.source_address);
        }
        span.set_status(SpanStatus::error(error.to_string()));
        // A worker that closed the fetch does not want to know.
        let _ = reports.send(Err(error.into())).await;
    }
    span.end();
}

/// How a fetch ends whose lease was fenced.
pub(crate) fn fenced() -> CallError {
    CallError::LeaseExpired("the receiving lease was fenced".into())
}
