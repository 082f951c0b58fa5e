//! A source that follows a script, and a receiver over a bare pool.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_codec::KvShapeOfModel;
use kvasir_engine::{Isa, KvDtype, KvLayout, KvShards};
use kvasir_kernels::KvShape;
use kvasir_sidecar::coders::Coders;
use kvasir_sidecar::connections::Connections;
use kvasir_sidecar::exports::Exports;
use kvasir_sidecar::fetch;
use kvasir_sidecar::fetches::Fetches;
use kvasir_sidecar::host_coder::HostSite;
use kvasir_sidecar::http2;
use kvasir_sidecar::layouts::{dtype_to_wire, layout_to_wire};
use kvasir_sidecar::proto::common::{ErrorDetail, ErrorReason, KvSource};
use kvasir_sidecar::proto::kernel::{FetchRequest, FetchResponse};
use kvasir_sidecar::proto::transfer::kv_transfer_service_server::{KvTransferService, KvTransferServiceServer};
use kvasir_sidecar::proto::transfer::{Frame, PullHeader, PullRequest, PullResponse, Ticket, pull_response::Kind};
use kvasir_sidecar::state::Sidecar;
use kvasir_sidecar::stats::Stats;
use kvasir_sidecar::telemetry::Telemetry;
use kvasir_sidecar::ticket::TicketKey;
use opentelemetry::Context;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use xxhash_rust::xxh3::xxh3_128;

pub const SHAPE: KvShape = KvShape {
    layer_count: 3,
    kv_head_count: 2,
    head_size: 8,
    block_size: 16,
    dtype: KvDtype::F16,
};
pub const SCOPE: [u8; 16] = [9; 16];
/// Two blocks, the second one partial.
pub const TOKENS: u32 = 20;
pub const BLOCKS: [u32; 2] = [2, 1];
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a source does once it has sent its messages.
#[derive(Clone, Copy)]
pub enum Then {
    Ends,
    HangsOpen,
    /// Does not even answer the call.
    NeverAnswers,
}

struct Script(Vec<PullResponse>, Then);

#[tonic::async_trait]
impl KvTransferService for Script {
    type PullStream = Pin<Box<dyn Stream<Item = Result<PullResponse, Status>> + Send>>;

    async fn pull(&self, _request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let messages = tokio_stream::iter(self.0.clone().into_iter().map(Ok));
        match self.1 {
            Then::Ends => Ok(Response::new(Box::pin(messages))),
            Then::HangsOpen => Ok(Response::new(Box::pin(messages.chain(tokio_stream::pending())))),
            Then::NeverAnswers => std::future::pending().await,
        }
    }
}

pub fn message(kind: Kind) -> PullResponse {
    PullResponse { kind: Some(kind) }
}

pub fn layout() -> KvLayout {
    KvLayout {
        model_revision: "test".into(),
        dtype: SHAPE.dtype,
        block_size: SHAPE.block_size,
        shard_count: 1,
        layer_count: SHAPE.layer_count,
        kv_head_count: SHAPE.kv_head_count,
        head_size: SHAPE.head_size,
        rope: "none".into(),
        fingerprint: [0; 16],
        exact_fingerprint: [0; 16],
    }
    .with_fingerprint()
}

pub fn header() -> PullHeader {
    PullHeader {
        layout: Some(layout_to_wire(&layout())),
        source_epoch: 1,
        frame_dtype: dtype_to_wire(SHAPE.dtype).into(),
        head_begin: 0,
        head_count: SHAPE.kv_head_count as u32,
    }
}

/// A good frame of all layers.
pub fn frame(token_begin: u32, token_count: u32) -> Frame {
    let data: Vec<u8> = (0..token_count as usize * SHAPE.bytes_per_token())
        .map(|i| (i % 250 + 1) as u8)
        .collect();
    sealed(Frame {
        token_begin,
        token_count,
        layer_begin: 0,
        layer_count: 3,
        layout_fingerprint: layout().fingerprint.to_vec(),
        tenant_scope: SCOPE.to_vec(),
        data: Bytes::from(data),
        ..Frame::default()
    })
}

/// With the digest of whatever it holds.
pub fn sealed(frame: Frame) -> Frame {
    Frame {
        digest: xxh3_128(&frame.data).to_be_bytes().to_vec(),
        ..frame
    }
}

/// What the codec knows of it.
pub fn coded_shape() -> KvShapeOfModel {
    KvShapeOfModel {
        dtype: SHAPE.dtype,
        layer_count: SHAPE.layer_count,
        kv_head_count: SHAPE.kv_head_count,
        head_size: SHAPE.head_size,
        inverse_frequencies: Vec::new(),
        fingerprint: layout().fingerprint,
    }
}

pub fn sidecar() -> Arc<Sidecar> {
    let pool = Arc::new(KvShards::new(SHAPE, 1, 1 << 14).expect("a pool"));
    let site = Arc::new(HostSite(Arc::clone(&pool)));
    Arc::new(Sidecar {
        worker_id: "sink".into(),
        epoch: 1,
        ticket_key: TicketKey::new([4; 32]),
        pool,
        layout: layout(),
        isa: Isa::detect(),
        coders: Coders::new(coded_shape(), None, site).expect("the built-in profile"),
        exports: Arc::new(Exports::default()),
        block_uses: Arc::default(),
        fetches: Fetches::default(),
        stats: Arc::new(Stats::default()),
        telemetry: Telemetry::start("sink"),
    })
}

pub fn request(source: String) -> FetchRequest {
    FetchRequest {
        lease_id: vec![1; 16],
        ticket: Some(Ticket::default()),
        source: Some(KvSource {
            layout: Some(layout_to_wire(&layout())),
            shard_addresses: vec![source],
            ..KvSource::default()
        }),
        block_ids: BLOCKS.to_vec(),
        token_begin: 0,
        token_end: TOKENS,
        tenant_scope: SCOPE.to_vec(),
        stall_timeout_ms: 200,
        ..FetchRequest::default()
    }
}

/// What the worker would be told, the last thing of it.
pub async fn fetched(sidecar: &Sidecar, messages: Vec<PullResponse>, then: Then) -> Result<FetchResponse, Status> {
    fetched_as(sidecar, messages, then, request).await
}

/// The same, for another request.
pub async fn fetched_as(
    sidecar: &Sidecar,
    messages: Vec<PullResponse>,
    then: Then,
    request: impl FnOnce(String) -> FetchRequest,
) -> Result<FetchResponse, Status> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let service = KvTransferServiceServer::new(Script(messages, then));
    let server = tokio::spawn(
        http2::server()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    let outcome = tokio::time::timeout(PATIENCE, fetch_from(sidecar, request(address)))
        .await
        .expect("it hangs");
    server.abort();
    outcome
}

pub async fn fetch_from(sidecar: &Sidecar, request: FetchRequest) -> Result<FetchResponse, Status> {
    let fetch = fetch::prepare(sidecar, request, Context::new())?;
    let (sender, mut reports) = mpsc::channel(16);
    let connections = Connections::default();
    let reading = async {
        let mut last = Err(Status::internal("no report"));
        while let Some(report) = reports.recv().await {
            last = report;
        }
        last
    };
    tokio::join!(fetch::run(sidecar, &connections, fetch, sender), reading).1
}

pub fn reason(status: &Status) -> ErrorReason {
    let detail = status
        .metadata()
        .get_bin("kvasir-error-bin")
        .expect("an error has a detail");
    ErrorDetail::decode(detail.to_bytes().expect("base64"))
        .expect("an ErrorDetail")
        .reason()
}

pub fn block(sidecar: &Sidecar, block: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    sidecar.pool.shards()[0]
        .gather(block, 0..16, 0..3, 0..2, &mut bytes)
        .expect("a block");
    bytes
}
