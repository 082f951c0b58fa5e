//! Sidecars without engines, over pools on a simulated device or in the host's memory, and pulls between them.

use crate::spied::Spied;
use kvasir_codec::{KvShapeOfModel, Profile, ProfileId};
use kvasir_cuda::ops::PoolShape;
use kvasir_cuda::{Buffer, Device, DeviceKv, DevicePool};
use kvasir_engine::{Isa, KvDtype, KvLayout, KvShards};
use kvasir_kernels::{KvPool, KvShape};
use kvasir_sidecar::chunk_coder::CodingSite;
use kvasir_sidecar::coders::Coders;
use kvasir_sidecar::connections::Connections;
use kvasir_sidecar::device_coder::DeviceSite;
use kvasir_sidecar::exports::{ExportTerms, Exports};
use kvasir_sidecar::fetches::Fetches;
use kvasir_sidecar::layouts::layout_to_wire;
use kvasir_sidecar::proto::common::KvSource;
use kvasir_sidecar::proto::kernel::{FetchRequest, FetchResponse};
use kvasir_sidecar::proto::transfer::kv_transfer_service_server::{KvTransferService, KvTransferServiceServer};
use kvasir_sidecar::proto::transfer::pull_response::Kind;
use kvasir_sidecar::proto::transfer::{Frame, PullRequest, PullResponse, Ticket, TicketClaims, TokenLevel};
use kvasir_sidecar::state::Sidecar;
use kvasir_sidecar::stats::Stats;
use kvasir_sidecar::telemetry::{Telemetry, unix_ms};
use kvasir_sidecar::text_kv::{gather_text, scatter_text};
use kvasir_sidecar::ticket::TicketKey;
use kvasir_sidecar::transfer_service::TransferService;
use kvasir_sidecar::{fetch, http2};
use kvasir_simt::SimtDevice;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Status};

const SHAPE: KvShape = KvShape {
    layer_count: 3,
    kv_head_count: 2,
    head_size: 16,
    block_size: 16,
    dtype: KvDtype::Bf16,
};
const BLOCK_COUNT: u32 = 2 * TOKENS_MAX.div_ceil(SHAPE.block_size as u32);
/// Of a text.
pub const TOKENS_MAX: u32 = 2100;
const SCOPE: [u8; 16] = [9; 16];
const LEASE: [u8; 16] = [1; 16];
const DEVICE_BYTES: usize = 64 << 20;

/// A text's blocks where it comes from, in disorder and apart from those where it goes.
fn source_blocks(tokens: u32) -> Vec<u32> {
    (0..tokens.div_ceil(SHAPE.block_size as u32))
        .rev()
        .map(|block| 2 * block + 1)
        .collect()
}

fn sink_blocks(tokens: u32) -> Vec<u32> {
    (0..tokens.div_ceil(SHAPE.block_size as u32))
        .rev()
        .map(|block| 2 * block)
        .collect()
}

fn layout() -> KvLayout {
    KvLayout {
        model_revision: "test".into(),
        dtype: SHAPE.dtype,
        block_size: SHAPE.block_size,
        shard_count: 1,
        layer_count: SHAPE.layer_count,
        kv_head_count: SHAPE.kv_head_count,
        head_size: SHAPE.head_size,
        rope: "test".into(),
        fingerprint: [0; 16],
        exact_fingerprint: [0; 16],
    }
    .with_fingerprint()
}

pub fn model() -> KvShapeOfModel {
    KvShapeOfModel {
        dtype: SHAPE.dtype,
        layer_count: SHAPE.layer_count,
        kv_head_count: SHAPE.kv_head_count,
        head_size: SHAPE.head_size,
        inverse_frequencies: (0..8).map(|i| 0.5f32.powi(i)).collect(),
        fingerprint: layout().fingerprint,
    }
}

pub type Server = tokio::task::JoinHandle<Result<(), tonic::transport::Error>>;

/// A sidecar without an engine, and where it serves.
pub struct Side {
    pub sidecar: Arc<Sidecar>,
    pub address: String,
    server: Server,
    /// What its coders run on, when that is a device.
    pub device: Option<Arc<Spied>>,
}

impl Drop for Side {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub async fn serving(service: impl KvTransferService) -> (String, Server) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let server = http2::server().add_service(KvTransferServiceServer::new(service));
    (
        address,
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener))),
    )
}

impl Side {
    /// `site` makes the host's coders of a pool.
    pub async fn on_host<S: CodingSite + 'static>(
        profile: &(Profile, ProfileId),
        site: impl FnOnce(Arc<KvShards>) -> S,
    ) -> Self {
        let bytes = SHAPE.bytes_per_token() * SHAPE.block_size * BLOCK_COUNT as usize;
        let pool = Arc::new(KvShards::new(SHAPE, 1, bytes as u64).expect("a pool"));
        let site = Arc::new(site(Arc::clone(&pool)));
        Self::over(pool, site, None, profile).await
    }

    /// `is_full`: nothing is left on the device for coders.
    pub async fn on_device(profile: &(Profile, ProfileId), is_full: bool) -> Self {
        let device = SimtDevice::new(DEVICE_BYTES, 3);
        let shape = PoolShape {
            layer_count: SHAPE.layer_count,
            kv_head_count: SHAPE.kv_head_count,
            head_size: SHAPE.head_size,
            block_size: SHAPE.block_size,
        };
        let memory = device
            .allocate(BLOCK_COUNT as usize * shape.block_bytes())
            .expect("memory");
        let kv = DeviceKv::new(Arc::new(device.beside()), memory.clone(), shape).expect("memory");
        let pool = KvPool::remote(SHAPE, BLOCK_COUNT, Box::new(kv)).expect("a pool");
        let pool = Arc::new(KvShards::whole(pool));
        let rest = if is_full { filled(&device) } else { Vec::new() };
        let device = Arc::new(Spied::new(device));
        let blocks = DevicePool { memory, shape };
        let site = DeviceSite::new(Arc::clone(&pool), blocks, &*device).expect("streams");
        let site = Arc::new(site);
        let side = Self::over(pool, site, Some(Arc::clone(&device)), profile).await;
        // As long as the process: who gives it back early has a device that is not full.
        std::mem::forget(rest);
        side
    }

    async fn over(
        pool: Arc<KvShards>,
        site: Arc<dyn CodingSite>,
        device: Option<Arc<Spied>>,
        profile: &(Profile, ProfileId),
    ) -> Self {
        let sidecar = Arc::new(Sidecar {
            worker_id: "w".into(),
            epoch: 1,
            ticket_key: TicketKey::new([4; 32]),
            pool,
            layout: layout(),
            isa: Isa::detect(),
            coders: Coders::new(model(), Some(profile.clone()), site).expect("coders"),
            exports: Arc::new(Exports::default()),
            fetches: Fetches::default(),
            block_uses: Arc::default(),
            stats: Arc::new(Stats::default()),
            telemetry: Telemetry::start("w"),
        });
        let service = TransferService {
            sidecar: Arc::clone(&sidecar),
            shard: 0,
        };
        let (address, server) = serving(service).await;
        Self {
            sidecar,
            address,
            server,
            device,
        }
    }

    /// Puts a text into the source's blocks and opens it to pulls.
    pub fn publish(&self, packed: &[u8]) {
        let layers = 0..SHAPE.layer_count as u32;
        let tokens = (packed.len() / SHAPE.bytes_per_token()) as u32;
        let block_ids = source_blocks(tokens);
        scatter_text(&self.sidecar.pool, &block_ids, tokens as usize, layers, packed).expect("it fits");
        let terms = ExportTerms {
            lease_id: LEASE,
            sequence_id: 1,
            token_count: tokens,
            block_ids,
            tenant_scope: SCOPE,
            expires_at_unix_ms: unix_ms() + 3_600_000,
        };
        self.sidecar.exports.publish_computed(terms).expect("published");
    }

    /// All messages of a pull, without what depends on time.
    pub async fn pulled(&self, levels: &[(u32, u32)]) -> Vec<PullResponse> {
        let service = TransferService {
            sidecar: Arc::clone(&self.sidecar),
            shard: 0,
        };
        let asked = request(String::new(), levels, 0, &self.sidecar);
        let pull = PullRequest {
            ticket: asked.ticket,
            token_end: asked.token_end,
            levels: asked.levels,
            layout_fingerprint: layout().fingerprint.to_vec(),
            block_size: SHAPE.block_size as u32,
            dtype: layout_to_wire(&layout()).dtype,
            head_count: SHAPE.kv_head_count as u32,
            codec_profile_id: asked.codec_profile_id,
            ..PullRequest::default()
        };
        let answer = service.pull(Request::new(pull)).await.expect("a pull");
        let messages: Vec<_> = answer.into_inner().collect().await;
        let timeless = |message: Result<PullResponse, Status>| match message.expect("the pull goes on").kind {
            Some(Kind::Frame(frame)) => sent(Frame {
                encode_nanos: 0,
                source_wait_nanos: 0,
                ..frame
            }),
            kind => PullResponse { kind },
        };
        messages.into_iter().map(timeless).collect()
    }

    pub async fn fetch(&self, request: FetchRequest) -> Result<FetchResponse, Status> {
        let fetch = fetch::prepare(&self.sidecar, request, opentelemetry::Context::new())?;
        let (sender, mut reports) = mpsc::channel(64);
        let connections = Connections::default();
        let reading = async {
            let mut last = Err(Status::internal("no report"));
            while let Some(report) = reports.recv().await {
                last = report;
            }
            last
        };
        tokio::join!(fetch::run(&self.sidecar, &connections, fetch, sender), reading).1
    }

    /// The text in the sink's blocks.
    pub fn arrived(&self, tokens: u32) -> Vec<u8> {
        let text = gather_text(&self.sidecar.pool, &sink_blocks(tokens), tokens as usize);
        text.expect("blocks").packed
    }

    /// Writes zeros there.
    pub fn clear(&self, tokens: u32) {
        let nothing = vec![0; tokens as usize * SHAPE.bytes_per_token()];
        let layers = 0..SHAPE.layer_count as u32;
        let blocks = sink_blocks(tokens);
        scatter_text(&self.sidecar.pool, &blocks, tokens as usize, layers, &nothing).expect("it fits");
    }
}

/// All that is left of a device's memory.
fn filled(device: &SimtDevice) -> Vec<Buffer> {
    let mut taken = Vec::new();
    let mut bytes = DEVICE_BYTES;
    while bytes >= 16 {
        match device.allocate(bytes) {
            Ok(buffer) => taken.push(buffer),
            Err(_) => bytes /= 2,
        }
    }
    taken
}

pub fn sent(frame: Frame) -> PullResponse {
    PullResponse {
        kind: Some(Kind::Frame(frame)),
    }
}

fn ticket(token_end: u32) -> Ticket {
    TicketKey::new([4; 32]).sign(&TicketClaims {
        lease_id: LEASE.to_vec(),
        source_worker_id: "w".into(),
        source_epoch: 1,
        token_begin: 0,
        token_end,
        expires_at_unix_ms: unix_ms() + 3_600_000,
        layout_fingerprint: layout().fingerprint.to_vec(),
        tenant_scope: SCOPE.to_vec(),
    })
}

/// For tokens up to the end of the last level's.
pub fn request(address: String, levels: &[(u32, u32)], lease: u8, profiled: &Sidecar) -> FetchRequest {
    let level = |(token_end, level): &(u32, u32)| TokenLevel {
        token_end: *token_end,
        level: *level,
    };
    let token_end = levels.last().map_or(0, |(token_end, _)| *token_end);
    FetchRequest {
        lease_id: vec![lease; 16],
        ticket: Some(ticket(token_end)),
        source: Some(KvSource {
            layout: Some(layout_to_wire(&layout())),
            shard_addresses: vec![address],
            ..KvSource::default()
        }),
        block_ids: sink_blocks(token_end),
        token_begin: 0,
        token_end,
        tenant_scope: SCOPE.to_vec(),
        levels: levels.iter().map(level).collect(),
        codec_profile_id: profiled.coders.describe()[1].id.clone(),
        ..FetchRequest::default()
    }
}
