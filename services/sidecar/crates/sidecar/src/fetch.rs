//! The receiver's side of a pull: connect, verify each frame, place it, report.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use opentelemetry::trace::{SpanKind, Status as SpanStatus, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use xxhash_rust::xxh3::xxh3_128;

use crate::errors::CallError;
use crate::exports::{LeaseId, lock};
use crate::fetches::WriteGate;
use crate::http2;
use crate::proto::kernel::{FetchRequest, FetchResponse};
use crate::proto::transfer::kv_transfer_service_client::KvTransferServiceClient;
use crate::proto::transfer::{CodecLevel, Frame, PullRequest, PullResponse, pull_response::Kind};
use crate::state::Sidecar;
use crate::stats::add;
use crate::telemetry::inject;
use crate::ticket::{self, ID_BYTES};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const STALL_TIMEOUT_DEFAULT_MS: u32 = 10_000;

/// Connections to other sidecars, one for each address, kept.
#[derive(Default)]
pub struct Connections(Mutex<HashMap<String, Channel>>);

impl Connections {
    async fn to(&self, address: &str) -> Result<Channel, CallError> {
        if let Some(channel) = lock(&self.0).get(address) {
            return Ok(channel.clone());
        }
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| CallError::InvalidRequest {
                field: "source_address".into(),
                message: format!("is {address}: {error}"),
            })?;
        let channel = http2::client(endpoint.connect_timeout(CONNECT_TIMEOUT))
            .connect()
            .await
            .map_err(|error| CallError::Unavailable(format!("cannot connect to the source at {address}: {error}")))?;
        lock(&self.0).insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// A connection that failed is made anew next time.
    fn forget(&self, address: &str) {
        lock(&self.0).remove(address);
    }
}

/// A fetch whose request was checked.
pub struct Fetch {
    request: FetchRequest,
    tenant_scope: [u8; ID_BYTES],
    gate: WriteGate,
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
    let mut receiving = Receiving {
        sidecar,
        next_token: fetch.request.token_begin,
        next_layer: 0,
        bytes: 0,
        frames: 0,
        transfer_nanos: 0,
        wait_nanos: 0,
        last: Instant::now(),
    };
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
        if matches!(error, CallError::Unavailable(_)) {
            connections.forget(&fetch.request.source_address);
        }
        span.set_status(SpanStatus::error(error.to_string()));
        // A worker that closed the fetch does not want to know.
        let _ = reports.send(Err(error.into())).await;
    }
    span.end();
}

struct Receiving<'a> {
    sidecar: &'a Sidecar,
    next_token: u32,
    next_layer: u32,
    bytes: u64,
    frames: u32,
    transfer_nanos: u64,
    wait_nanos: u64,
    last: Instant,
}

impl Receiving<'_> {
    async fn pull(
        &mut self,
        connections: &Connections,
        fetch: &Fetch,
        context: &Context,
        reports: &mpsc::Sender<Result<FetchResponse, Status>>,
    ) -> Result<(), CallError> {
        let request = &fetch.request;
        let channel = connections.to(&request.source_address).await?;
        let mut pull = Request::new(PullRequest {
            ticket: request.ticket.clone(),
            token_begin: request.token_begin,
            token_end: request.token_end,
            level: request.level,
            layout_fingerprint: self.sidecar.layout.fingerprint.to_vec(),
        });
        inject(context, pull.metadata_mut());
        let mut client = KvTransferServiceClient::new(channel).max_decoding_message_size(http2::MESSAGE_BYTES_MAX);
        let stall_ms = if request.stall_timeout_ms == 0 {
            STALL_TIMEOUT_DEFAULT_MS
        } else {
            request.stall_timeout_ms
        };
        let stall = Duration::from_millis(stall_ms.into());

        let answered = tokio::time::timeout(stall, client.pull(pull))
            .await
            .map_err(|_| self.stalled(stall))?;
        let mut stream = answered.map_err(|status| CallError::from_status(&status))?.into_inner();
        let Kind::Header(header) = self.next(&mut stream, Some(stall)).await? else {
            return Err(CallError::Internal("the source began without a header".into()));
        };
        self.last = Instant::now();
        if header
            .layout
            .as_ref()
            .is_none_or(|layout| layout.fingerprint != self.sidecar.layout.fingerprint)
        {
            return Err(CallError::LayoutMismatch(
                "the source's KV layout differs from ours; place the request on equal layouts".into(),
            ));
        }
        loop {
            // The header comes at once. Before the first frame the prompt may queue; HTTP/2 pings tell whether the source lives. After
            // it, silence is a stall.
            let limit = (self.frames > 0).then_some(stall);
            match self.next(&mut stream, limit).await? {
                Kind::Header(_) => return Err(CallError::Internal("the source sent a second header".into())),
                Kind::Frame(frame) => {
                    if let Err(error) = self.admit(&frame, fetch) {
                        add(&self.sidecar.stats.frames_refused, 1);
                        return Err(error);
                    }
                    if self.next_layer == 0 && self.next_token < request.token_end {
                        self.report(reports, false).await?;
                    }
                }
                Kind::End(end) => {
                    let all = self.next_token == request.token_end && self.next_layer == 0;
                    if !all || end.data_bytes != self.bytes || end.frame_count != self.frames {
                        let message = format!(
                            "the source ended after {} bytes in {} frames, {} and {} came, up to token {} of {}",
                            end.data_bytes,
                            end.frame_count,
                            self.bytes,
                            self.frames,
                            self.next_token,
                            request.token_end
                        );
                        return Err(CallError::DigestMismatch(message));
                    }
                    return self.report(reports, true).await;
                }
            }
        }
    }

    fn stalled(&self, limit: Duration) -> CallError {
        let (after, limit_ms) = (self.next_token, limit.as_millis());
        CallError::Unavailable(format!(
            "nothing came for {limit_ms} ms after token {after}; the source stalls"
        ))
    }

    async fn next(&self, stream: &mut Streaming<PullResponse>, limit: Option<Duration>) -> Result<Kind, CallError> {
        let message = match limit {
            None => stream.message().await,
            Some(limit) => tokio::time::timeout(limit, stream.message())
                .await
                .map_err(|_| self.stalled(limit))?,
        };
        match message.map_err(|status| CallError::from_status(&status))? {
            Some(PullResponse { kind: Some(kind) }) => Ok(kind),
            Some(_) => Err(CallError::Internal("the source sent an empty message".into())),
            None => Err(CallError::Unavailable(format!(
                "the source ended early, at token {}",
                self.next_token
            ))),
        }
    }

    /// Verifies a frame, whole, and only then places it.
    fn admit(&mut self, frame: &Frame, fetch: &Fetch) -> Result<(), CallError> {
        let expected_layers = self.sidecar.layout.layer_count as u32;
        let in_order = frame.token_begin == self.next_token
            && frame.layer_begin == self.next_layer
            && frame.layer_count > 0
            && frame.token_count > 0
            && frame
                .layer_begin
                .checked_add(frame.layer_count)
                .is_some_and(|end| end <= expected_layers);
        let block_size = self.sidecar.frame_shape().block_size;
        let within = frame.token_begin % block_size;
        let token_end = frame
            .token_begin
            .checked_add(frame.token_count)
            .filter(|end| *end <= fetch.request.token_end);
        let whole = token_end.is_some_and(|end| end == fetch.request.token_end || end % block_size == 0);
        if !in_order || !whole || within + frame.token_count > block_size || frame.level() != CodecLevel::Raw {
            return Err(CallError::DigestMismatch(format!(
                "a frame of tokens {}+{} and layers {}+{} came where token {} and layer {} were next",
                frame.token_begin,
                frame.token_count,
                frame.layer_begin,
                frame.layer_count,
                self.next_token,
                self.next_layer
            )));
        }
        if frame.layout_fingerprint != self.sidecar.layout.fingerprint {
            return Err(CallError::LayoutMismatch("a frame of another KV layout came".into()));
        }
        if frame.tenant_scope != fetch.tenant_scope {
            return Err(CallError::DigestMismatch(format!(
                "the frame at token {} is of another tenant",
                frame.token_begin
            )));
        }
        if frame.digest != xxh3_128(&frame.data).to_be_bytes() {
            return Err(CallError::DigestMismatch(format!(
                "the frame at token {} was altered on its way",
                frame.token_begin
            )));
        }
        let block = fetch.request.block_ids[(frame.token_begin / block_size) as usize];
        let tokens = within..within + frame.token_count;
        let layers = frame.layer_begin..frame.layer_begin + frame.layer_count;
        let placed = fetch
            .gate
            .write(|| self.sidecar.pool.scatter(block, tokens, layers.clone(), &frame.data));
        match placed {
            None => return Err(fenced()),
            Some(Err(error)) => return Err(CallError::DigestMismatch(error.to_string())),
            Some(Ok(())) => {}
        }
        self.bytes += frame.data.len() as u64;
        self.frames += 1;
        add(&self.sidecar.stats.kv_bytes_received, frame.data.len() as u64);
        let elapsed = u64::try_from(self.last.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last = Instant::now();
        let waited = frame.source_wait_nanos.min(elapsed);
        self.wait_nanos += waited;
        self.transfer_nanos += elapsed - waited;
        self.next_layer = layers.end;
        if self.next_layer == expected_layers {
            self.next_layer = 0;
            self.next_token += frame.token_count;
        }
        Ok(())
    }

    async fn report(
        &self,
        reports: &mpsc::Sender<Result<FetchResponse, Status>>,
        complete: bool,
    ) -> Result<(), CallError> {
        let report = FetchResponse {
            verified_token_end: self.next_token,
            data_bytes: self.bytes,
            complete,
            transfer_nanos: self.transfer_nanos,
        };
        let gone = |_| CallError::Cancelled("the worker closed the fetch".into());
        reports.send(Ok(report)).await.map_err(gone)
    }
}

fn fenced() -> CallError {
    CallError::LeaseExpired("the receiving lease was fenced".into())
}
