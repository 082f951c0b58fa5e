//! The source's side of a pull.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, Status as SpanStatus, Tracer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use xxhash_rust::xxh3::xxh3_128;

use crate::errors::CallError;
use crate::exports::Export;
use crate::frames::FrameRange;
use crate::proto::transfer::kv_transfer_service_server::KvTransferService;
use crate::proto::transfer::{CodecLevel, Frame, PullEnd, PullHeader, PullRequest, PullResponse, pull_response::Kind};
use crate::state::Sidecar;
use crate::stats::{GaugeGuard, add};
use crate::telemetry::{context_from_metadata, unix_ms};
use crate::ticket;

/// Frames between gather and the connection. More would only hold memory: HTTP/2 has its own window.
const FRAMES_BUFFERED: usize = 4;

/// Serves exports.
pub struct TransferService(pub Arc<Sidecar>);

#[tonic::async_trait]
impl KvTransferService for TransferService {
    type PullStream = Pin<Box<dyn Stream<Item = Result<PullResponse, Status>> + Send>>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let context = context_from_metadata(request.metadata());
        let mut span = self.0.telemetry.tracer.start_with_context("kv.serve", &context);
        let request = request.into_inner();
        let export = match admit(&self.0, &request) {
            Ok(export) => export,
            Err(error) => {
                span.set_status(SpanStatus::error(error.to_string()));
                return Err(error.into());
            }
        };
        let (sender, receiver) = mpsc::channel(FRAMES_BUFFERED);
        // How it failed goes behind the frames, without waiting for a puller that reads no more.
        let (failure, failed) = mpsc::channel(1);
        let sidecar = Arc::clone(&self.0);
        tokio::spawn(async move {
            let _running = GaugeGuard::new(&sidecar.stats.pulls_running);
            let mut pull = Serving {
                sidecar: &sidecar,
                export: &export,
                sender,
                bytes: 0,
                frames: 0,
            };
            let outcome = pull.run(request.token_begin, request.token_end).await;
            span.set_attribute(KeyValue::new("kvasir.bytes", pull.bytes as i64));
            span.set_attribute(KeyValue::new("kvasir.frames", i64::from(pull.frames)));
            if let Err(error) = outcome {
                span.set_status(SpanStatus::error(error.to_string()));
                // Nobody listens when the puller closed the stream, which is how it cancels.
                let _ = failure.try_send(Err(error.into()));
            }
            span.end();
        });
        Ok(Response::new(Box::pin(
            ReceiverStream::new(receiver).chain(ReceiverStream::new(failed)),
        )))
    }
}

/// Whether the ticket opens an export that holds the range.
fn admit(sidecar: &Sidecar, request: &PullRequest) -> Result<Arc<Export>, CallError> {
    let ticket = request.ticket.as_ref().ok_or(CallError::InvalidRequest {
        field: "ticket".into(),
        message: "is missing".into(),
    })?;
    let claims = sidecar.ticket_key.verify(ticket, sidecar.epoch, unix_ms())?;
    if request.layout_fingerprint != sidecar.layout.fingerprint {
        let message = format!(
            "the receiver's KV layout differs from {}'s; place the request on equal layouts",
            sidecar.worker_id
        );
        return Err(CallError::LayoutMismatch(message));
    }
    if request.level() != CodecLevel::Raw {
        return Err(CallError::InvalidRequest {
            field: "level".into(),
            message: format!("is {}; use RAW", request.level),
        });
    }
    let lease_id = ticket::id("lease_id", &claims.lease_id)?;
    let export = sidecar
        .exports
        .find(&lease_id)
        .ok_or_else(|| CallError::LeaseExpired("the lease was released or has expired; ask for a new ticket".into()))?;
    let (begin, end) = (request.token_begin, request.token_end);
    let granted = claims.token_begin..claims.token_end.min(export.terms.token_count);
    if begin >= end
        || begin < granted.start
        || end > granted.end
        || !begin.is_multiple_of(sidecar.frame_shape().block_size)
    {
        let message = format!("{begin}..{end} is not a range that begins on a block within the granted {granted:?}");
        return Err(CallError::InvalidRequest {
            field: "token_begin".into(),
            message,
        });
    }
    if claims.tenant_scope != export.terms.tenant_scope {
        return Err(CallError::LeaseExpired("the ticket is of another tenant".into()));
    }
    Ok(export)
}

struct Serving<'a> {
    sidecar: &'a Sidecar,
    export: &'a Export,
    sender: mpsc::Sender<Result<PullResponse, Status>>,
    bytes: u64,
    frames: u32,
}

impl Serving<'_> {
    async fn run(&mut self, begin: u32, end: u32) -> Result<(), CallError> {
        let header = PullHeader {
            layout: Some(self.sidecar.wire_layout()),
            source_epoch: self.sidecar.epoch,
        };
        self.send(Kind::Header(header)).await?;
        let shape = self.sidecar.frame_shape();
        let mut progress = self.export.follow();
        let mut sent = begin;
        while sent < end {
            let waited = Instant::now();
            let computed = tokio::select! {
                changed = progress.wait_for(|p| p.closed || shape.sendable_end(p.computed_tokens, end) > sent) => {
                    changed.map(|progress| *progress).map_err(|_| closed())?
                }
                () = self.sender.closed() => return Err(gone()),
            };
            if computed.closed {
                return Err(closed());
            }
            let mut wait_nanos = u64::try_from(waited.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let ready = shape.sendable_end(computed.computed_tokens, end);
            while sent < ready {
                for range in shape.block_frames(sent, ready) {
                    let frame = self.frame(&range, std::mem::take(&mut wait_nanos))?;
                    let bytes = frame.data.len() as u64;
                    self.send(Kind::Frame(frame)).await?;
                    self.bytes += bytes;
                    self.frames += 1;
                    add(&self.sidecar.stats.kv_bytes_sent, bytes);
                }
                sent = ready.min(sent - sent % shape.block_size + shape.block_size);
            }
        }
        self.send(Kind::End(PullEnd {
            data_bytes: self.bytes,
            frame_count: self.frames,
        }))
        .await
    }

    /// Reads one frame. The lease is checked before, and held open by the guard until the bytes are copied; epoch cannot change within a
    /// process.
    fn frame(&self, range: &FrameRange, source_wait_nanos: u64) -> Result<Frame, CallError> {
        let guard = self.export.read(unix_ms()).ok_or_else(closed)?;
        let mut data = Vec::new();
        let block = self
            .export
            .terms
            .block_ids
            .get(range.block_index)
            .copied()
            .ok_or_else(|| {
                CallError::Internal(format!("the export has no block {} for its tokens", range.block_index))
            })?;
        self.sidecar
            .pool
            .gather(block, range.tokens.clone(), range.layers.clone(), &mut data)
            .map_err(|error| CallError::Internal(error.to_string()))?;
        drop(guard);
        if unix_ms() >= self.export.terms.expires_at_unix_ms {
            return Err(closed());
        }
        Ok(Frame {
            token_begin: range.token_begin,
            token_count: range.tokens.len() as u32,
            layer_begin: range.layers.start,
            layer_count: range.layers.len() as u32,
            level: CodecLevel::Raw.into(),
            digest: xxh3_128(&data).to_be_bytes().to_vec(),
            layout_fingerprint: self.sidecar.layout.fingerprint.to_vec(),
            tenant_scope: self.export.terms.tenant_scope.to_vec(),
            data: Bytes::from(data),
            source_wait_nanos,
        })
    }

    /// Waits while the puller is slower, but not longer than the lease lives.
    async fn send(&self, kind: Kind) -> Result<(), CallError> {
        let mut progress = self.export.follow();
        tokio::select! {
            biased;
            sent = self.sender.send(Ok(PullResponse { kind: Some(kind) })) => sent.map_err(|_| gone()),
            _ = progress.wait_for(|progress| progress.closed) => Err(closed()),
        }
    }
}

fn closed() -> CallError {
    CallError::LeaseExpired("the lease was released or has expired; ask for a new ticket".into())
}

fn gone() -> CallError {
    CallError::Cancelled("the puller closed the stream".into())
}
