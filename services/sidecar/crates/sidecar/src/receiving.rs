//! The receiver's side of a pull: connect, verify each frame, place it, report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::try_join_all;
use kvasir_codec::LEVEL_RAW;
use opentelemetry::Context;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, StreamMap};
use tonic::{Request, Status, Streaming};

use crate::arriving::Arriving;
use crate::connections::Connections;
use crate::errors::CallError;
use crate::fetch::Fetch;
use crate::http2;
use crate::intervals::Route;
use crate::layouts::{conversion, dtype_to_wire};
use crate::proto::common::KvConversion;
use crate::proto::kernel::{FetchResponse, LevelTraffic};
use crate::proto::transfer::kv_transfer_service_client::KvTransferServiceClient;
use crate::proto::transfer::{Frame, PullRequest, PullResponse, pull_response::Kind};
use crate::state::Sidecar;
use crate::stats::add;
use crate::telemetry::inject;

const STALL_TIMEOUT_DEFAULT_MS: u32 = 10_000;

/// How far a pull is, over all its streams.
pub(crate) struct Receiving<'a> {
    sidecar: &'a Sidecar,
    fetch: &'a Fetch,
    /// One for each route, in their order.
    streams: Vec<Arriving<'a>>,
    pub(crate) bytes: u64,
    pub(crate) frames: u32,
    pub(crate) transfer_nanos: u64,
    pub(crate) wait_nanos: u64,
    /// By level.
    traffic: BTreeMap<u32, LevelTraffic>,
    last: Instant,
}

impl<'a> Receiving<'a> {
    /// Nothing received yet.
    pub(crate) fn new(sidecar: &'a Sidecar, fetch: &'a Fetch) -> Self {
        let arriving = |route| Arriving::new(sidecar, fetch, route);
        Self {
            sidecar,
            fetch,
            streams: fetch.routes.iter().map(arriving).collect(),
            bytes: 0,
            frames: 0,
            transfer_nanos: 0,
            wait_nanos: 0,
            traffic: BTreeMap::new(),
            last: Instant::now(),
        }
    }

    /// Bytes of the elements that came, had they come raw.
    pub(crate) fn raw_bytes(&self) -> u64 {
        self.traffic.values().map(|traffic| traffic.raw_bytes).sum()
    }

    /// Tokens up to here are in place, in all layers and heads.
    pub(crate) fn verified_token_end(&self) -> u32 {
        let ends = self.streams.iter().map(Arriving::token_end);
        ends.min().unwrap_or(self.fetch.request.token_begin)
    }

    /// What becomes of the elements.
    pub(crate) fn conversion(&self) -> KvConversion {
        conversion(self.fetch.source.dtype, self.sidecar.layout.dtype)
    }

    /// Pulls to the end of the range, or until something is wrong. Dropping the future stops it between two frames.
    pub(crate) async fn pull(
        &mut self,
        connections: &Connections,
        context: &Context,
        reports: &mpsc::Sender<Result<FetchResponse, Status>>,
    ) -> Result<(), CallError> {
        let stall_ms = match self.fetch.request.stall_timeout_ms {
            0 => STALL_TIMEOUT_DEFAULT_MS,
            given => given,
        };
        let stall = Duration::from_millis(stall_ms.into());
        let opening = self.open(connections, context);
        let mut streams = tokio::time::timeout(stall, opening)
            .await
            .map_err(|_| self.stalled(stall))??;
        self.last = Instant::now();
        let mut reported = self.fetch.request.token_begin;
        let mut came = None;
        while !self.streams.iter().all(|stream| stream.is_ended) {
            // Headers come at once. Before the first frame the prompt may queue; HTTP/2 pings tell whether the source lives. After it,
            // silence is a stall.
            let is_silence_odd = self.frames > 0 || self.streams.iter().any(|stream| !stream.has_begun);
            let (index, kind) = match came.take() {
                Some(came) => came?,
                None => self.next(&mut streams, is_silence_odd.then_some(stall)).await?,
            };
            match kind {
                Kind::Header(header) => self.streams[index].begin(&header)?,
                Kind::Frame(frame) => {
                    let mut frames = vec![frame];
                    let mut times = vec![self.arrived()];
                    came = self.come_with(index, &mut streams, &mut frames, &mut times);
                    let (placed, outcome) = self.streams[index].admit(&frames).await;
                    for ((traffic, frame), elapsed) in placed.iter().zip(&frames).zip(times) {
                        self.count(traffic, frame.source_wait_nanos, elapsed);
                    }
                    if let Err(error) = outcome {
                        add(&self.sidecar.stats.frames_refused, 1);
                        return Err(error);
                    }
                    let verified = self.verified_token_end();
                    if verified > reported && verified < self.fetch.request.token_end {
                        reported = verified;
                        self.report(reports, false).await?;
                    }
                }
                Kind::End(end) => self.streams[index].end(&end)?,
            }
        }
        self.report(reports, true).await
    }

    /// Adds frames that are there already and can be decoded together with the first one. Returns what came instead of another of them.
    fn come_with(
        &mut self,
        index: usize,
        streams: &mut StreamMap<usize, impl Stream<Item = Message> + Unpin>,
        frames: &mut Vec<Frame>,
        times: &mut Vec<u64>,
    ) -> Option<Result<(usize, Kind), CallError>> {
        let level = frames.first().map_or(0, |frame| frame.level);
        while level != u32::from(LEVEL_RAW) && frames.len() < self.sidecar.coders.chunks_at_once() {
            match self.next(streams, None).now_or_never()? {
                Ok((from, Kind::Frame(frame))) if from == index && frame.level == level => {
                    times.push(self.arrived());
                    frames.push(frame);
                }
                other => return Some(other),
            }
        }
        None
    }

    /// Opens all streams at once.
    async fn open(
        &self,
        connections: &Connections,
        context: &Context,
    ) -> Result<StreamMap<usize, impl Stream<Item = Message> + use<>>, CallError> {
        let open = async |route: &Route| {
            let channel = connections.to(&self.fetch.addresses[route.source]).await?;
            let mut pull = Request::new(self.pull_request(route));
            inject(context, pull.metadata_mut());
            let mut client = KvTransferServiceClient::new(channel).max_decoding_message_size(http2::MESSAGE_BYTES_MAX);
            let answer = client.pull(pull).await;
            answer.map_err(|status| CallError::from_status(&status))
        };
        let answers = try_join_all(self.fetch.routes.iter().map(open)).await?;
        let mut streams = StreamMap::new();
        for (index, answer) in answers.into_iter().enumerate() {
            let stream: Streaming<PullResponse> = answer.into_inner();
            let ends = tokio_stream::once(None);
            streams.insert(index, Box::pin(stream.map(Some).chain(ends)));
        }
        Ok(streams)
    }

    fn pull_request(&self, route: &Route) -> PullRequest {
        let (request, layout) = (&self.fetch.request, &self.sidecar.layout);
        PullRequest {
            ticket: request.ticket.clone(),
            token_begin: request.token_begin,
            token_end: request.token_end,
            levels: request.levels.clone(),
            codec_profile_id: request.codec_profile_id.clone(),
            layout_fingerprint: layout.fingerprint.to_vec(),
            block_size: layout.block_size as u32,
            dtype: dtype_to_wire(layout.dtype).into(),
            head_begin: route.part.heads.start,
            head_count: route.part.heads.len() as u32,
            deadline_ms: request.deadline_ms,
        }
    }

    fn stalled(&self, limit: Duration) -> CallError {
        let (after, limit_ms) = (self.verified_token_end(), limit.as_millis());
        CallError::Unavailable(format!(
            "nothing came for {limit_ms} ms after token {after}; the source stalls"
        ))
    }

    /// The next message, of whatever stream has one.
    async fn next(
        &self,
        streams: &mut StreamMap<usize, impl Stream<Item = Message> + Unpin>,
        limit: Option<Duration>,
    ) -> Result<(usize, Kind), CallError> {
        let ended = || {
            let token = self.verified_token_end();
            CallError::Unavailable(format!("the source ended early, at token {token}"))
        };
        loop {
            let message = match limit {
                None => streams.next().await,
                Some(limit) => tokio::time::timeout(limit, streams.next())
                    .await
                    .map_err(|_| self.stalled(limit))?,
            };
            let (index, message) = message.ok_or_else(ended)?;
            match message {
                None if self.streams[index].is_ended => {}
                None => return Err(ended()),
                Some(Err(status)) => return Err(CallError::from_status(&status)),
                Some(Ok(PullResponse { kind: Some(kind) })) => return Ok((index, kind)),
                Some(Ok(_)) => return Err(CallError::Internal("the source sent an empty message".into())),
            }
        }
    }

    /// Time since the frame before this one.
    fn arrived(&mut self) -> u64 {
        let elapsed = u64::try_from(self.last.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last = Instant::now();
        elapsed
    }

    fn count(&mut self, traffic: &LevelTraffic, source_wait_nanos: u64, elapsed: u64) {
        self.bytes += traffic.wire_bytes;
        self.frames += 1;
        add(&self.sidecar.stats.kv_bytes_received, traffic.wire_bytes);
        let sum = self.traffic.entry(traffic.level).or_insert(LevelTraffic {
            level: traffic.level,
            ..LevelTraffic::default()
        });
        sum.wire_bytes += traffic.wire_bytes;
        sum.raw_bytes += traffic.raw_bytes;
        sum.encode_nanos = sum.encode_nanos.saturating_add(traffic.encode_nanos);
        sum.decode_nanos += traffic.decode_nanos;
        let waited = source_wait_nanos.min(elapsed);
        self.wait_nanos += waited;
        self.transfer_nanos += elapsed - waited;
    }

    async fn report(
        &self,
        reports: &mpsc::Sender<Result<FetchResponse, Status>>,
        complete: bool,
    ) -> Result<(), CallError> {
        let report = FetchResponse {
            verified_token_end: self.verified_token_end(),
            data_bytes: self.bytes,
            complete,
            transfer_nanos: self.transfer_nanos,
            conversion: self.conversion().into(),
            levels: self.traffic.values().copied().collect(),
        };
        let gone = |_| CallError::Cancelled("the worker closed the fetch".into());
        reports.send(Ok(report)).await.map_err(gone)
    }
}

/// What a stream says; None is its end.
type Message = Option<Result<PullResponse, Status>>;
