//! The receiver's side of a pull: connect, verify each frame, place it, report.

use std::time::{Duration, Instant};

use opentelemetry::Context;
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming};
use xxhash_rust::xxh3::xxh3_128;

use crate::connections::Connections;
use crate::errors::CallError;
use crate::fetch::{Fetch, fenced};
use crate::http2;
use crate::proto::kernel::FetchResponse;
use crate::proto::transfer::kv_transfer_service_client::KvTransferServiceClient;
use crate::proto::transfer::{CodecLevel, Frame, PullRequest, PullResponse, pull_response::Kind};
use crate::state::Sidecar;
use crate::stats::add;
use crate::telemetry::inject;

const STALL_TIMEOUT_DEFAULT_MS: u32 = 10_000;

/// How far a pull is.
pub(crate) struct Receiving<'a> {
    sidecar: &'a Sidecar,
    pub(crate) next_token: u32,
    next_layer: u32,
    pub(crate) bytes: u64,
    pub(crate) frames: u32,
    pub(crate) transfer_nanos: u64,
    pub(crate) wait_nanos: u64,
    last: Instant,
}

impl<'a> Receiving<'a> {
    /// Nothing received yet; the first token wanted is next.
    pub(crate) fn new(sidecar: &'a Sidecar, token_begin: u32) -> Self {
        Self {
            sidecar,
            next_token: token_begin,
            next_layer: 0,
            bytes: 0,
            frames: 0,
            transfer_nanos: 0,
            wait_nanos: 0,
            last: Instant::now(),
        }
    }

    /// Pulls to the end of the range, or until something is wrong. Dropping the future stops it between two frames.
    pub(crate) async fn pull(
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
