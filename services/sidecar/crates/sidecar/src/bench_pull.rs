//! `kvasir-sidecar bench-pull`: the transfer path between two processes, without a model.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use clap::Subcommand;
use kvasir_engine::{Isa, KvDtype, KvLayout, KvShards};
use kvasir_kernels::KvShape;
use opentelemetry::Context;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cli::{TlsFlags, bytes};
use crate::coders::Coders;
use crate::exports::{ExportTerms, Exports};
use crate::fetch;
use crate::fetches::Fetches;
use crate::identity::{Identity, PeerRole};
use crate::kv_plane::KvPlane;
use crate::proto::common::KvSource;
use crate::proto::kernel::{FetchRequest, FetchResponse};
use crate::proto::transfer::{Ticket, TicketClaims};
use crate::serve::Fatal;
use crate::state::Sidecar;
use crate::stats::Stats;
use crate::telemetry::{Telemetry, unix_ms};
use crate::ticket::TicketKey;
use crate::tls::{Tls, TlsFiles};
use crate::transfer_service::TransferService;

/// SmolLM2-135M's shape in bf16: 22.5 KiB a token, 720 KiB a block.
pub(crate) const SHAPE: KvShape = KvShape {
    layer_count: 30,
    kv_head_count: 3,
    head_size: 64,
    block_size: 32,
    dtype: KvDtype::Bf16,
};
const LEASE: [u8; 16] = [1; 16];
const SCOPE: [u8; 16] = [2; 16];
const SOURCE_ID: &str = "bench-source";
const SINK_ID: &str = "bench-sink";
const LIFETIME_MS: u64 = 3_600_000;

/// The two ends of a pull.
#[derive(Debug, Clone, Subcommand)]
pub enum BenchPull {
    /// Export a filled pool; prints one JSON line with the address and a ticket, and stays until stdin ends
    Serve {
        /// KV to export, e.g. 1GiB
        #[arg(long, default_value = "1GiB", value_parser = bytes)]
        bytes: u64,
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Certificates of prefill/bench-source
        #[command(flatten)]
        tls: TlsFlags,
    },
    /// Pull from it and print JSON
    Fetch {
        /// The line that `serve` printed
        #[arg(long)]
        offer: String,
        /// Sizes to pull
        #[arg(long, value_delimiter = ',', default_value = "64KiB,1MiB,16MiB,1GiB", value_parser = bytes)]
        sizes: Vec<u64>,
        /// Pulls of each size after one that warms up
        #[arg(long, default_value_t = 5)]
        repetitions: usize,
        /// Certificates of decode/bench-sink
        #[command(flatten)]
        tls: TlsFlags,
    },
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Offer {
    address: String,
    claims: Vec<u8>,
    mac: Vec<u8>,
    token_count: u32,
}

/// Runs one end.
///
/// # Errors
/// What keeps it from starting or a pull from completing.
pub fn run(what: BenchPull) -> Result<(), Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match what {
        BenchPull::Serve { bytes, listen, tls } => {
            let kv_plane = KvPlane::start(1, load_tls(&tls, PeerRole::Prefill)?)?;
            runtime.block_on(serve(bytes, listen, &kv_plane))
        }
        BenchPull::Fetch {
            offer,
            sizes,
            repetitions,
            tls,
        } => {
            let kv_plane = KvPlane::start(1, load_tls(&tls, PeerRole::Decode)?)?;
            let offer = serde_json::from_str(&offer)?;
            runtime.block_on(fetch_sizes(offer, &sizes, repetitions, &kv_plane))
        }
    }
}

fn load_tls(flags: &TlsFlags, role: PeerRole) -> Result<Option<Arc<Tls>>, Fatal> {
    let id = if role == PeerRole::Prefill { SOURCE_ID } else { SINK_ID }.to_owned();
    let load = |files| Tls::load(files, Identity { role, id }).map(Arc::new);
    TlsFiles::from_flags(flags)?.map(load).transpose()
}

fn sidecar(name: &str, bytes: u64) -> Result<Sidecar, Fatal> {
    let block_bytes = (SHAPE.bytes_per_token() * SHAPE.block_size) as u64;
    let layout = KvLayout {
        model_revision: "bench".into(),
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
    .with_fingerprint();
    Ok(Sidecar {
        worker_id: name.into(),
        epoch: 1,
        ticket_key: TicketKey::new([4; 32]),
        pool: Arc::new(KvShards::new(SHAPE, 1, bytes.next_multiple_of(block_bytes))?),
        isa: Isa::detect(),
        layout,
        coders: Coders::none(),
        exports: Arc::new(Exports::default()),
        fetches: Fetches::default(),
        block_uses: Arc::default(),
        stats: Arc::new(Stats::default()),
        telemetry: Telemetry::start(name),
    })
}

async fn serve(bytes: u64, listen: SocketAddr, kv_plane: &KvPlane) -> Result<(), Fatal> {
    let sidecar = Arc::new(sidecar(SOURCE_ID, bytes)?);
    let block_count = sidecar.pool.block_count();
    let block_tokens = 0..SHAPE.block_size as u32;
    let mut noise = 1u64;
    for block in 0..block_count {
        let data: Vec<u8> = (0..SHAPE.bytes_per_token() * SHAPE.block_size / 8)
            .flat_map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                noise.to_le_bytes()
            })
            .collect();
        let (layers, heads) = (0..SHAPE.layer_count as u32, 0..SHAPE.kv_head_count as u32);
        sidecar.pool.shards()[0].scatter(block, block_tokens.clone(), layers, heads, &data)?;
    }
    let token_count = block_count * SHAPE.block_size as u32;
    let expires_at_unix_ms = unix_ms() + LIFETIME_MS;
    sidecar.exports.publish(ExportTerms {
        lease_id: LEASE,
        sequence_id: 1,
        token_count,
        block_ids: (0..block_count).collect(),
        tenant_scope: SCOPE,
        expires_at_unix_ms,
    })?;
    sidecar.exports.advance(1, token_count);
    let claims = TicketClaims {
        lease_id: LEASE.to_vec(),
        source_worker_id: sidecar.worker_id.clone(),
        source_epoch: sidecar.epoch,
        token_begin: 0,
        token_end: token_count,
        expires_at_unix_ms,
        layout_fingerprint: sidecar.layout.fingerprint.to_vec(),
        tenant_scope: SCOPE.to_vec(),
    };
    let Ticket { claims, mac } = sidecar.ticket_key.sign(&claims);
    let listener = TcpListener::bind(listen).await?;
    let offer = Offer {
        address: listener.local_addr()?.to_string(),
        claims,
        mac,
        token_count,
    };
    println!("{}", serde_json::to_string(&offer)?);
    std::thread::spawn(|| {
        let mut buffer = [0; 64];
        while std::io::stdin().read(&mut buffer).is_ok_and(|count| count > 0) {}
        std::process::exit(0);
    });
    let service = TransferService { sidecar, shard: 0 };
    let mut servers = JoinSet::new();
    kv_plane.serve(listener, service, &mut servers)?;
    while let Some(ended) = servers.join_next().await {
        ended??;
    }
    Ok(())
}

async fn fetch_sizes(offer: Offer, sizes: &[u64], repetitions: usize, kv_plane: &KvPlane) -> Result<(), Fatal> {
    let largest = sizes.iter().copied().max().unwrap_or(0);
    let sidecar = Arc::new(sidecar(SINK_ID, largest)?);
    let mut lines = Vec::new();
    let mut lease = 0u128;
    for size in sizes {
        let token_count = (size / SHAPE.bytes_per_token() as u64).clamp(1, u64::from(offer.token_count)) as u32;
        let (mut rates, mut first_ms) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for repetition in 0..=repetitions {
            lease += 1;
            let request = FetchRequest {
                lease_id: lease.to_be_bytes().to_vec(),
                ticket: Some(Ticket {
                    claims: offer.claims.clone(),
                    mac: offer.mac.clone(),
                }),
                source: Some(KvSource {
                    layout: Some(sidecar.wire_layout()),
                    shard_addresses: vec![offer.address.clone()],
                    ..KvSource::default()
                }),
                block_ids: (0..sidecar.pool.block_count()).collect(),
                token_begin: 0,
                token_end: token_count,
                tenant_scope: SCOPE.to_vec(),
                ..FetchRequest::default()
            };
            let began = Instant::now();
            let prepared = fetch::prepare(&sidecar, request, Context::new())?;
            let (sender, mut receiver) = mpsc::channel::<Result<FetchResponse, tonic::Status>>(16);
            let fetching = kv_plane.fetch(Arc::clone(&sidecar), prepared, sender);
            let (mut first, mut last) = (None, None);
            while let Some(report) = receiver.recv().await {
                first.get_or_insert_with(|| began.elapsed());
                last = Some(report?);
            }
            fetching.await?;
            let report = last.ok_or("no report came")?;
            if repetition > 0 {
                rates.push(report.data_bytes as f64 / began.elapsed().as_secs_f64() / 1e9);
                first_ms.push(first.map_or(0.0, |first| first.as_secs_f64() * 1e3));
            }
            bytes = report.data_bytes;
        }
        rates.sort_by(f64::total_cmp);
        first_ms.sort_by(f64::total_cmp);
        lines.push(serde_json::json!({
            "bytes": bytes,
            "gb_per_s": rates[rates.len() / 2],
            "best_gb_per_s": rates[rates.len() - 1],
            "first_block_ms": first_ms[first_ms.len() / 2],
        }));
    }
    println!("{}", serde_json::Value::Array(lines));
    Ok(())
}
