//! KV between pools that are divided, cut and typed differently, over real connections: every element arrives once, at its place, and nothing
//! else moves.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use kvasir_engine::{Isa, KvDtype, KvLayout, KvShards};
use kvasir_kernels::KvShape;
use kvasir_sidecar::coders::Coders;
use kvasir_sidecar::connections::Connections;
use kvasir_sidecar::exports::{ExportTerms, Exports};
use kvasir_sidecar::fetch;
use kvasir_sidecar::fetches::Fetches;
use kvasir_sidecar::http2;
use kvasir_sidecar::layouts::conversion;
use kvasir_sidecar::proto::common::KvSource;
use kvasir_sidecar::proto::kernel::{FetchRequest, FetchResponse};
use kvasir_sidecar::proto::transfer::kv_transfer_service_server::KvTransferServiceServer;
use kvasir_sidecar::proto::transfer::{Ticket, TicketClaims};
use kvasir_sidecar::state::Sidecar;
use kvasir_sidecar::stats::Stats;
use kvasir_sidecar::telemetry::{Telemetry, unix_ms};
use kvasir_sidecar::ticket::TicketKey;
use kvasir_sidecar::transfer_listener::connections;
use kvasir_sidecar::transfer_service::TransferService;
use opentelemetry::Context;
use proptest::prelude::*;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;

const LAYERS: u32 = 3;
const HEADS: u32 = 4;
const HEAD_SIZE: usize = 8;
/// Tokens in each pool; a sequence takes less than half of it.
const POOL_TOKENS: u32 = 512;
pub const SCOPE: [u8; 16] = [9; 16];
const LEASE: [u8; 16] = [1; 16];

/// How one side keeps its KV.
#[derive(Debug, Clone, Copy)]
struct Side {
    shard_count: usize,
    block_size: usize,
    dtype: KvDtype,
}

fn side() -> impl Strategy<Value = Side> {
    let dtypes = prop_oneof![Just(KvDtype::F32), Just(KvDtype::F16), Just(KvDtype::Bf16)];
    let (shards, sizes) = (
        prop::sample::select(vec![1, 2, 4]),
        prop::sample::select(vec![16, 32, 64]),
    );
    (shards, sizes, dtypes).prop_map(|(shard_count, block_size, dtype)| Side {
        shard_count,
        block_size,
        dtype,
    })
}

impl Side {
    fn sidecar(self) -> Arc<Sidecar> {
        let shape = KvShape {
            layer_count: LAYERS as usize,
            kv_head_count: HEADS as usize,
            head_size: HEAD_SIZE,
            block_size: self.block_size,
            dtype: self.dtype,
        };
        let bytes = shape.bytes_per_token() as u64 * u64::from(POOL_TOKENS);
        sidecar_of(shape, self.shard_count, bytes)
    }

    /// Blocks of a sequence, scattered over the pool and out of order.
    fn blocks(self, tokens: u32) -> Vec<u32> {
        let all = POOL_TOKENS / self.block_size as u32;
        let count = tokens.div_ceil(self.block_size as u32);
        (0..count)
            .map(|index| all - 1 - (index * 2 + (index & 1)) % all)
            .collect()
    }
}

/// A sidecar without a model.
pub fn sidecar_of(shape: KvShape, shard_count: usize, bytes: u64) -> Arc<Sidecar> {
    let layout = KvLayout {
        model_revision: "test".into(),
        dtype: shape.dtype,
        block_size: shape.block_size,
        shard_count,
        layer_count: shape.layer_count,
        kv_head_count: shape.kv_head_count,
        head_size: shape.head_size,
        rope: "none".into(),
        fingerprint: [0; 16],
        exact_fingerprint: [0; 16],
    };
    Arc::new(Sidecar {
        worker_id: "w".into(),
        epoch: 1,
        ticket_key: TicketKey::new([4; 32]),
        pool: Arc::new(KvShards::new(shape, shard_count, bytes).expect("a pool")),
        isa: Isa::detect(),
        layout: layout.with_fingerprint(),
        coders: Coders::none(),
        exports: Arc::new(Exports::default()),
        block_uses: Arc::default(),
        fetches: Fetches::default(),
        stats: Arc::new(Stats::default()),
        telemetry: Telemetry::start("w"),
    })
}

/// Publishes the first tokens of a sequence and signs the ticket.
pub fn publish(source: &Sidecar, blocks: &[u32], tokens: u32) -> Ticket {
    let expires_at_unix_ms = unix_ms() + 60_000;
    let terms = ExportTerms {
        lease_id: LEASE,
        sequence_id: 1,
        token_count: tokens,
        block_ids: blocks.to_vec(),
        tenant_scope: SCOPE,
        expires_at_unix_ms,
    };
    source.exports.publish(terms).expect("published");
    source.ticket_key.sign(&TicketClaims {
        lease_id: LEASE.to_vec(),
        source_epoch: 1,
        token_end: tokens,
        expires_at_unix_ms,
        tenant_scope: SCOPE.to_vec(),
        ..TicketClaims::default()
    })
}

/// A number of its own for each element, of more digits than the narrow types hold.
fn label(layer: u32, value: bool, head: u32, token: u32, element: usize) -> f32 {
    let index = ((layer * 2 + u32::from(value)) * HEADS + head) * POOL_TOKENS + token;
    (index * HEAD_SIZE as u32 + element as u32) as f32 * 0.500_3 + 0.1
}

fn bytes_of(value: f32, dtype: KvDtype) -> Vec<u8> {
    match dtype {
        KvDtype::F32 => value.to_le_bytes().to_vec(),
        KvDtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        KvDtype::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

fn rounded(value: f32, dtype: KvDtype) -> f32 {
    match dtype {
        KvDtype::F32 => value,
        KvDtype::F16 => f16::from_f32(value).to_f32(),
        KvDtype::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

/// One token of one layer of one shard, packed; each element is what `of` says.
fn token_bytes(heads: Range<usize>, dtype: KvDtype, of: impl Fn(bool, u32, usize) -> f32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in [false, true] {
        for head in heads.clone() {
            for element in 0..HEAD_SIZE {
                bytes.extend(bytes_of(of(value, head as u32, element), dtype));
            }
        }
    }
    bytes
}

fn fill(sidecar: &Sidecar, side: Side, blocks: &[u32], tokens: u32) {
    for (shard, pool) in sidecar.pool.shards().iter().enumerate() {
        let heads = sidecar.pool.heads(shard);
        for (token, layer) in (0..tokens).flat_map(|token| (0..LAYERS).map(move |layer| (token, layer))) {
            let (index, within) = (token as usize / side.block_size, token % side.block_size as u32);
            let data = token_bytes(heads.clone(), side.dtype, |value, head, element| {
                label(layer, value, head, token, element)
            });
            pool.scatter(
                blocks[index],
                within..within + 1,
                layer..layer + 1,
                0..heads.len() as u32,
                &data,
            )
            .expect("in the pool");
        }
    }
}

/// Everything a shard holds, token by token and layer by layer.
fn contents(sidecar: &Sidecar, shard: usize, block_size: u32) -> Vec<u8> {
    let (pool, mut all) = (&sidecar.pool.shards()[shard], Vec::new());
    let heads = pool.shape().kv_head_count as u32;
    for block in 0..pool.block_count() {
        for (token, layer) in (0..block_size).flat_map(|token| (0..LAYERS).map(move |layer| (token, layer))) {
            pool.gather(block, token..token + 1, layer..layer + 1, 0..heads, &mut all)
                .expect("in the pool");
        }
    }
    all
}

/// What a shard should hold when the range has arrived and all else is as it was: zero.
fn expected(sidecar: &Sidecar, shard: usize, sides: (Side, Side), blocks: &[u32], range: &Range<u32>) -> Vec<u8> {
    let (source, sink) = sides;
    let heads = sidecar.pool.heads(shard);
    let mut all = Vec::new();
    for block in 0..sidecar.pool.block_count() {
        for (within, layer) in (0..sink.block_size).flat_map(|token| (0..LAYERS).map(move |layer| (token, layer))) {
            let index = blocks.iter().position(|id| *id == block);
            let token = index.map(|index| (index * sink.block_size + within) as u32);
            let arrived = token.filter(|token| range.contains(token));
            all.extend(token_bytes(
                heads.clone(),
                sink.dtype,
                |value, head, element| match arrived {
                    Some(token) => rounded(label(layer, value, head, token, element), source.dtype),
                    None => 0.0,
                },
            ));
        }
    }
    all
}

/// Serves every shard on a port of its own.
pub async fn serve(sidecar: &Arc<Sidecar>, servers: &mut JoinSet<()>) -> KvSource {
    let mut shard_addresses = Vec::new();
    for shard in 0..sidecar.layout.shard_count {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        shard_addresses.push(listener.local_addr().expect("an address").to_string());
        let sidecar = Arc::clone(sidecar);
        let service = KvTransferServiceServer::new(TransferService { sidecar, shard });
        let server = http2::server()
            .add_service(service)
            .serve_with_incoming(connections(listener, None));
        servers.spawn(async move { server.await.expect("it serves") });
    }
    KvSource {
        layout: Some(sidecar.wire_layout()),
        shard_addresses,
        ..KvSource::default()
    }
}

/// Publishes `tokens` tokens, which become computed while they are pulled, and pulls a range of them.
async fn moved(
    source: &Arc<Sidecar>,
    sink: &Arc<Sidecar>,
    blocks: (&[u32], &[u32]),
    tokens: u32,
    range: &Range<u32>,
) -> Result<FetchResponse, Status> {
    let mut servers = JoinSet::new();
    let ticket = publish(source, blocks.0, tokens);
    let request = FetchRequest {
        lease_id: vec![2; 16],
        ticket: Some(ticket),
        source: Some(serve(source, &mut servers).await),
        block_ids: blocks.1.to_vec(),
        token_begin: range.start,
        token_end: range.end,
        tenant_scope: SCOPE.to_vec(),
        ..FetchRequest::default()
    };
    let fetch = fetch::prepare(sink, request, Context::new())?;
    let (sender, mut reports) = mpsc::channel::<Result<FetchResponse, Status>>(16);
    let connections = Connections::default();
    let reading = async {
        let (mut last, mut end) = (Err(Status::internal("no report")), range.start);
        while let Some(report) = reports.recv().await {
            if let Ok(report) = &report {
                assert!(report.verified_token_end >= end, "progress goes back");
                end = report.verified_token_end;
            }
            last = report;
        }
        last
    };
    let computing = async {
        for computed in (0..tokens).step_by(37).chain([tokens]) {
            for layers in 1..=LAYERS {
                source.exports.stored(&[(1, computed)], layers, LAYERS);
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::join!(fetch::run(sink, &connections, fetch, sender), reading, computing).1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_element_arrives_once_at_its_place_and_nothing_else_moves(
        (source, sink) in (side(), side()), tokens in 1u32..230, (begin, end) in (0.0..1.0f64, 0.0..1.0f64),
    ) {
        let begin = (f64::from(tokens) * begin) as u32 / sink.block_size as u32 * sink.block_size as u32;
        let range = begin..begin + 1 + (f64::from(tokens - begin - 1) * end) as u32;
        let (from, to) = (source.sidecar(), sink.sidecar());
        let blocks = (source.blocks(tokens), sink.blocks(tokens));
        fill(&from, source, &blocks.0, tokens);
        let before: Vec<_> = (0..source.shard_count).map(|shard| contents(&from, shard, source.block_size as u32)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let report = runtime.block_on(moved(&from, &to, (&blocks.0, &blocks.1), tokens, &range)).expect("it moves");
        prop_assert!(report.complete && report.verified_token_end == range.end);
        prop_assert_eq!(report.conversion(), conversion(source.dtype, sink.dtype));
        let element_bytes = source.dtype.byte_size().min(sink.dtype.byte_size());
        let elements = range.len() * (LAYERS * 2 * HEADS) as usize * HEAD_SIZE;
        prop_assert_eq!(report.data_bytes, (elements * element_bytes) as u64);
        for shard in 0..sink.shard_count {
            let expected = expected(&to, shard, (source, sink), &blocks.1, &range);
            prop_assert!(contents(&to, shard, sink.block_size as u32) == expected, "shard {}", shard);
        }
        for (shard, before) in before.iter().enumerate() {
            prop_assert!(&contents(&from, shard, source.block_size as u32) == before);
        }
    }
}
