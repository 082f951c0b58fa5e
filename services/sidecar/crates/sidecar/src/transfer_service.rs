//! The source's side of a pull.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, Status as SpanStatus, Tracer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::coders::LevelRequest;
use crate::errors::CallError;
use crate::frames::Pieces;
use crate::layouts::{dtype_from_wire, frame_dtype};
use crate::proto::transfer::kv_transfer_service_server::KvTransferService;
use crate::proto::transfer::{PullRequest, PullResponse};
use crate::serving::{Admitted, Outgoing, Serving};
use crate::state::Sidecar;
use crate::stats::GaugeGuard;
use crate::telemetry::{context_from_metadata, unix_ms};
use crate::ticket;
use crate::transfer_listener::Peer;
use crate::turns::{TURNS_OUT, Turns};

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
            let mut pull = Serving::new(&sidecar, &admitted, line, sender);
            let outcome = pull.run().await;
            span.set_attribute(KeyValue::new("kvasir.bytes", pull.bytes as i64));
            let names = admitted.levels.used().into_iter();
            let names = names.map(|level| sidecar.coders.name(admitted.levels.profile(), level));
            span.set_attribute(KeyValue::new("kvasir.level", names.collect::<Vec<_>>().join(",")));
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
    let levels = sidecar.coders.levels(&LevelRequest {
        levels: &request.levels,
        profile_id: &request.codec_profile_id,
        tokens: begin..end,
        piece_size,
        is_whole: sink_dtype == sidecar.layout.dtype && model_heads.len() == sidecar.layout.kv_head_count,
    })?;
    Ok(Admitted {
        export,
        levels,
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
