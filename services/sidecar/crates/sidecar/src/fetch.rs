//! A pull into this sidecar, from the worker's request to its end.

use kvasir_engine::KvLayout;
use opentelemetry::trace::{SpanKind, Status as SpanStatus, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use tokio::sync::mpsc;
use tonic::Status;

use crate::block_uses::FetchGuard;
use crate::coders::LevelRequest;
use crate::connections::Connections;
use crate::errors::CallError;
use crate::exports::LeaseId;
use crate::fetches::WriteGate;
use crate::frames::Pieces;
use crate::intervals::{Route, routes};
use crate::layouts::layout_from_wire;
use crate::levels::Levels;
use crate::proto::kernel::{FetchRequest, FetchResponse};
use crate::receiving::Receiving;
use crate::state::{Sidecar, parts_of};
use crate::ticket::{self, ID_BYTES};

/// A fetch whose request was checked.
pub struct Fetch {
    pub(crate) request: FetchRequest,
    pub(crate) tenant_scope: [u8; ID_BYTES],
    pub(crate) gate: WriteGate,
    /// Layout of the source.
    pub(crate) source: KvLayout,
    /// Where each shard of the source listens.
    pub(crate) addresses: Vec<String>,
    /// Which of its shards sends what to which of ours.
    pub(crate) routes: Vec<Route>,
    /// How the tokens are cut.
    pub(crate) pieces: Pieces,
    /// How they travel.
    pub(crate) levels: Levels,
    context: Context,
    /// No swap gets what is written here.
    _blocks: FetchGuard,
}

/// Checks a request against the pool.
///
/// # Errors
/// [`CallError::InvalidRequest`], [`CallError::LayoutMismatch`] when the source's KV is of another model, [`CallError::CodecMismatch`] for a level
/// that is not to be had here, [`CallError::Busy`] for a block that is being swapped, or [`CallError::LeaseExpired`] when the lease was fenced already.
pub fn prepare(sidecar: &Sidecar, request: FetchRequest, context: Context) -> Result<Fetch, CallError> {
    let invalid = |field: &'static str, message: String| CallError::InvalidRequest {
        field: field.into(),
        message,
    };
    let lease_id: LeaseId = ticket::id("lease_id", &request.lease_id)?;
    let tenant_scope = ticket::id("tenant_scope", &request.tenant_scope)?;
    let block_size = sidecar.block_size();
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
    let (source, addresses) = source_of(sidecar, &request)?;
    let routes = routes(&parts_of(&source), &sidecar.parts())
        .map_err(|part| CallError::Internal(format!("no shard of the source holds {part:?}")))?;
    let all_heads = 0..sidecar.layout.kv_head_count as u32;
    let levels = sidecar.coders.levels(&LevelRequest {
        levels: &request.levels,
        profile_id: &request.codec_profile_id,
        tokens: begin..end,
        piece_size: block_size.min(source.block_size as u32),
        is_whole: source.dtype == sidecar.layout.dtype && routes.iter().all(|route| route.part.heads == all_heads),
    })?;
    let written = (begin / block_size) as usize..end.div_ceil(block_size) as usize;
    let blocks = sidecar.block_uses.begin_fetch(&request.block_ids[written])?;
    let gate = sidecar.fetches.open(lease_id).ok_or_else(fenced)?;
    Ok(Fetch {
        pieces: Pieces::new(begin..end, source.block_size as u32, block_size),
        levels,
        request,
        tenant_scope,
        gate,
        source,
        addresses,
        routes,
        context,
        _blocks: blocks,
    })
}

/// The source's layout, of which we can take KV, and the addresses of its shards.
fn source_of(sidecar: &Sidecar, request: &FetchRequest) -> Result<(KvLayout, Vec<String>), CallError> {
    let invalid = |message: String| CallError::InvalidRequest {
        field: "source".into(),
        message,
    };
    let source = request.source.as_ref().ok_or_else(|| invalid("is missing".into()))?;
    let layout = source.layout.as_ref().ok_or_else(|| invalid("has no layout".into()))?;
    let layout = layout_from_wire(layout).map_err(invalid)?;
    if let Some(difference) = sidecar.layout.difference(&layout) {
        let message = format!("KV cannot move here: {difference}; place the request on workers of one model");
        return Err(CallError::LayoutMismatch(message));
    }
    let addresses = source.shard_addresses.clone();
    if addresses.len() != layout.shard_count {
        let message = format!("has {} addresses for {} shards", addresses.len(), layout.shard_count);
        return Err(invalid(message));
    }
    Ok((layout, addresses))
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
    let mut receiving = Receiving::new(sidecar, &fetch);
    let mut fenced_watch = fetch.gate.watch();
    let outcome = tokio::select! {
        outcome = receiving.pull(connections, &context, &reports) => outcome,
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
        i64::from(receiving.verified_token_end() - fetch.request.token_begin),
    ));
    let names = |level: &u8| sidecar.coders.name(fetch.levels.profile(), *level);
    let levels: Vec<String> = fetch.levels.used().iter().map(names).collect();
    span.set_attribute(KeyValue::new("kvasir.level", levels.join(",")));
    span.set_attribute(KeyValue::new("kvasir.raw_bytes", receiving.raw_bytes() as i64));
    span.set_attribute(KeyValue::new("kvasir.source", fetch.addresses.join(",")));
    span.set_attribute(KeyValue::new("kvasir.streams", fetch.routes.len() as i64));
    span.set_attribute(KeyValue::new("kvasir.conversion", receiving.conversion().as_str_name()));
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
            fetch.addresses.iter().for_each(|address| connections.forget(address));
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
