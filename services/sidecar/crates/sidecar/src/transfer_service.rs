//! The source's side of a pull.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvasir_engine::KvDtype;
use kvasir_kernels::convert;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, Status as SpanStatus, Tracer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use xxhash_rust::xxh3::xxh3_128;

use crate::errors::CallError;
use crate::exports::{Export, Progress};
use crate::frames::{Coverage, FrameRange, Pieces, within_block};
use crate::layouts::{dtype_from_wire, dtype_to_wire, frame_dtype};
use crate::proto::transfer::kv_transfer_service_server::KvTransferService;
use crate::proto::transfer::{CodecLevel, Frame, PullEnd, PullHeader, PullRequest, PullResponse, pull_response::Kind};
use crate::state::Sidecar;
use crate::stats::{GaugeGuard, add};
use crate::telemetry::{context_from_metadata, unix_ms};
use crate::ticket;
use crate::transfer_listener::Peer;
use crate::turns::{Line, TURNS_OUT, Turn, Turns};

/// When a pull without a deadline is needed: after all that have one.
const NO_HURRY: Duration = Duration::from_secs(3_600);

/// Serves one shard's part of exports.
pub struct TransferService {
    /// The process.
    pub sidecar: Arc<Sidecar>,
    /// Which of its shards.
    pub shard: usize,
}

#[tonic::async_trait]
impl KvTransferService for TransferService {
    type PullStream = Pin<Box<dyn Stream<Item = Result<PullResponse, Status>> + Send>>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let context = context_from_metadata(request.metadata());
        let mut span = self.sidecar.telemetry.tracer.start_with_context("kv.serve", &context);
        let peer = request.extensions().get::<Peer>();
        let turns: Arc<Turns> = peer.map(|peer| Arc::clone(&peer.turns)).unwrap_or_default();
        let request = request.into_inner();
        let admitted = match admit(&self.sidecar, self.shard, &request) {
            Ok(admitted) => admitted,
            Err(error) => {
                span.set_status(SpanStatus::error(error.to_string()));
                return Err(error.into());
            }
        };
        let (sender, receiver) = mpsc::channel::<Outgoing>(TURNS_OUT);
        let line = turns.join(Instant::now() + time_left(request.deadline_ms));
        // How it failed goes behind the frames, without waiting for a puller that reads no more.
        let (failure, failed) = mpsc::channel(1);
        let sidecar = Arc::clone(&self.sidecar);
        tokio::spawn(async move {
            let _running = GaugeGuard::new(&sidecar.stats.pulls_running);
            let layers = 0..sidecar.layout.layer_count as u32;
            let mut pull = Serving {
                sidecar: &sidecar,
                sent: Coverage::new(admitted.pieces.clone(), layers),
                admitted: &admitted,
                line,
                sender,
                bytes: 0,
                frames: 0,
            };
            let outcome = pull.run().await;
            span.set_attribute(KeyValue::new("kvasir.bytes", pull.bytes as i64));
            span.set_attribute(KeyValue::new("kvasir.frames", i64::from(pull.frames)));
            if let Err(error) = outcome {
                span.set_status(SpanStatus::error(error.to_string()));
                // Nobody listens when the puller closed the stream, which is how it cancels.
                let _ = failure.try_send(Err(error.into()));
            }
            span.end();
        });
        // A turn ends here, when the connection takes its frame.
        let messages = ReceiverStream::new(receiver).map(|outgoing| Ok(outgoing.message));
        Ok(Response::new(Box::pin(messages.chain(ReceiverStream::new(failed)))))
    }
}

/// A pull that may be served.
struct Admitted {
    export: Arc<Export>,
    pieces: Pieces,
    shard: usize,
    /// Counted in the shard's pool.
    heads: Range<u32>,
    /// The same, counted in the model.
    model_heads: Range<u32>,
    dtype: KvDtype,
}

/// Whether the ticket opens an export that holds the tokens, and the shard has the heads.
fn admit(sidecar: &Sidecar, shard: usize, request: &PullRequest) -> Result<Admitted, CallError> {
    let invalid = |field: &'static str, message: String| CallError::InvalidRequest {
        field: field.into(),
        message,
    };
    let ticket = request
        .ticket
        .as_ref()
        .ok_or_else(|| invalid("ticket", "is missing".into()))?;
    let claims = sidecar.ticket_key.verify(ticket, sidecar.epoch, unix_ms())?;
    if request.layout_fingerprint != sidecar.layout.fingerprint {
        let message = format!(
            "the receiver's KV is not of {}'s model; place the request on workers of one model",
            sidecar.worker_id
        );
        return Err(CallError::LayoutMismatch(message));
    }
    if request.level() != CodecLevel::Raw {
        return Err(invalid("level", format!("is {}; use RAW", request.level)));
    }
    let sink_dtype = dtype_from_wire(request.dtype())
        .ok_or_else(|| invalid("dtype", format!("is {}; use F32, F16 or BF16", request.dtype)))?;
    if !matches!(request.block_size, 16 | 32 | 64) {
        return Err(invalid(
            "block_size",
            format!("is {}; use 16, 32 or 64", request.block_size),
        ));
    }
    let held = sidecar.pool.heads(shard);
    let held = held.start as u32..held.end as u32;
    let model_heads = request.head_begin..request.head_begin.saturating_add(request.head_count);
    if model_heads.is_empty() || model_heads.start < held.start || model_heads.end > held.end {
        let message = format!("{model_heads:?} are not among the KV heads {held:?} of shard {shard}");
        return Err(invalid("head_begin", message));
    }
    let lease_id = ticket::id("lease_id", &claims.lease_id)?;
    let export = sidecar
        .exports
        .find(&lease_id)
        .ok_or_else(|| CallError::LeaseExpired("the lease was released or has expired; ask for a new ticket".into()))?;
    let (begin, end) = (request.token_begin, request.token_end);
    let granted = claims.token_begin..claims.token_end.min(export.terms.token_count);
    let piece_size = sidecar.block_size().min(request.block_size);
    if begin >= end || begin < granted.start || end > granted.end || !begin.is_multiple_of(piece_size) {
        let message = format!(
            "{begin}..{end} is not a range that begins on a block of {piece_size} within the granted {granted:?}"
        );
        return Err(invalid("token_begin", message));
    }
    if claims.tenant_scope != export.terms.tenant_scope {
        return Err(CallError::LeaseExpired("the ticket is of another tenant".into()));
    }
    Ok(Admitted {
        export,
        pieces: Pieces::new(begin..end, sidecar.block_size(), request.block_size),
        shard,
        heads: model_heads.start - held.start..model_heads.end - held.start,
        model_heads,
        dtype: frame_dtype(sidecar.layout.dtype, sink_dtype),
    })
}

fn time_left(deadline_ms: u32) -> Duration {
    match deadline_ms {
        0 => NO_HURRY,
        given => Duration::from_millis(given.into()),
    }
}

/// A message on its way to the connection.
struct Outgoing {
    message: PullResponse,
    _turn: Option<Turn>,
}

struct Serving<'a> {
    sidecar: &'a Sidecar,
    admitted: &'a Admitted,
    sent: Coverage,
    line: Line,
    sender: mpsc::Sender<Outgoing>,
    bytes: u64,
    frames: u32,
}

impl Serving<'_> {
    async fn run(&mut self) -> Result<(), CallError> {
        let heads = &self.admitted.model_heads;
        let header = PullHeader {
            layout: Some(self.sidecar.wire_layout()),
            source_epoch: self.sidecar.epoch,
            frame_dtype: dtype_to_wire(self.admitted.dtype).into(),
            head_begin: heads.start,
            head_count: heads.len() as u32,
        };
        self.send(Kind::Header(header), None).await?;
        let token_layer_bytes = 2 * heads.len() * self.sidecar.layout.head_size * self.admitted.dtype.byte_size();
        let mut progress = self.admitted.export.follow();
        let mut wait_nanos = 0;
        while !self.sent.is_complete() {
            let next = |progress: &Progress| {
                let ready = |tokens: &Range<u32>| progress.layers_of(tokens.end);
                self.sent.next_frame(ready, token_layer_bytes)
            };
            let now = *progress.borrow_and_update();
            if now.closed {
                return Err(closed());
            }
            if next(&now).is_some() {
                let turn = tokio::select! {
                    turn = self.line.turn() => turn,
                    () = self.sender.closed() => return Err(gone()),
                    _ = progress.wait_for(|progress| progress.closed) => return Err(closed()),
                };
                // There may be more by now.
                let Some(range) = next(&progress.borrow()) else {
                    continue;
                };
                let frame = self.frame(&range, std::mem::take(&mut wait_nanos))?;
                let bytes = frame.data.len() as u64;
                self.send(Kind::Frame(frame), Some(turn)).await?;
                // Of our own choosing, so it is next.
                let _ = self.sent.take(&range);
                self.bytes += bytes;
                self.frames += 1;
                add(&self.sidecar.stats.kv_bytes_sent, bytes);
                continue;
            }
            let waited = Instant::now();
            tokio::select! {
                changed = progress.changed() => changed.map_err(|_| closed())?,
                () = self.sender.closed() => return Err(gone()),
            }
            wait_nanos += u64::try_from(waited.elapsed().as_nanos()).unwrap_or(u64::MAX);
        }
        let end = PullEnd {
            data_bytes: self.bytes,
            frame_count: self.frames,
        };
        self.send(Kind::End(end), None).await
    }

    /// Reads one frame. The lease is checked before, and held open by the guard until the bytes are copied; epoch cannot change within a
    /// process.
    fn frame(&self, range: &FrameRange, source_wait_nanos: u64) -> Result<Frame, CallError> {
        let Admitted { export, pieces, .. } = self.admitted;
        let guard = export.read(unix_ms()).ok_or_else(closed)?;
        let mut data = Vec::new();
        for piece in range.pieces.clone() {
            self.gather(&pieces.tokens(piece..piece + 1), &range.layers, &mut data)?;
        }
        drop(guard);
        if unix_ms() >= export.terms.expires_at_unix_ms {
            return Err(closed());
        }
        if self.admitted.dtype != self.sidecar.layout.dtype {
            let mut converted = Vec::new();
            convert(
                self.sidecar.isa,
                self.sidecar.layout.dtype,
                &data,
                self.admitted.dtype,
                &mut converted,
            );
            data = converted;
        }
        let tokens = pieces.tokens(range.pieces.clone());
        Ok(Frame {
            token_begin: tokens.start,
            token_count: tokens.len() as u32,
            layer_begin: range.layers.start,
            layer_count: range.layers.len() as u32,
            level: CodecLevel::Raw.into(),
            digest: xxh3_128(&data).to_be_bytes().to_vec(),
            layout_fingerprint: self.sidecar.layout.fingerprint.to_vec(),
            tenant_scope: export.terms.tenant_scope.to_vec(),
            data: Bytes::from(data),
            source_wait_nanos,
        })
    }

    fn gather(&self, tokens: &Range<u32>, layers: &Range<u32>, data: &mut Vec<u8>) -> Result<(), CallError> {
        let (index, within) = within_block(tokens, self.sidecar.block_size());
        let blocks = &self.admitted.export.terms.block_ids;
        let block = blocks
            .get(index)
            .ok_or_else(|| CallError::Internal(format!("the export has no block {index} for its tokens")))?;
        self.sidecar.pool.shards()[self.admitted.shard]
            .gather(*block, within, layers.clone(), self.admitted.heads.clone(), data)
            .map_err(|error| CallError::Internal(error.to_string()))
    }

    /// Waits while the puller is slower, but not longer than the lease lives.
    async fn send(&self, kind: Kind, turn: Option<Turn>) -> Result<(), CallError> {
        let mut progress = self.admitted.export.follow();
        let outgoing = Outgoing {
            message: PullResponse { kind: Some(kind) },
            _turn: turn,
        };
        tokio::select! {
            biased;
            sent = self.sender.send(outgoing) => sent.map_err(|_| gone()),
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
