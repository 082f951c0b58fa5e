//! `kvasir-sidecar store`: open, listen, share the store's fate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kvasir_codec::KvShapeOfModel;
use kvasir_engine::{Isa, KvLayout, KvShards};
use kvasir_kernels::KvShape;
use kvasir_model::RopeConfig;
use kvasir_store::{Store, StoreOptions};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::cli::StoreFlags;
use crate::coders::Coders;
use crate::exports::Exports;
use crate::fetches::Fetches;
use crate::host_coder::HostSite;
use crate::http2;
use crate::identity::{Identity, PeerRole};
use crate::kv_plane::KvPlane;
use crate::layouts::layout_from_wire;
use crate::proto::common;
use crate::proto::kernel::DescribeStoreResponse;
use crate::proto::kernel::store_sidecar_service_server::StoreSidecarServiceServer;
use crate::serve::{
    Fatal, SWEEP_INTERVAL, advertised, bind_socket, exit_with_stdin, ignore_interrupts, read_ticket_key, say,
};
use crate::state::Sidecar;
use crate::stats::Stats;
use crate::store_role::service::{Shared, StoreFacing};
use crate::store_role::staging::Staging;
use crate::telemetry::{Telemetry, unix_ms};
use crate::ticket::TicketKey;
use crate::tls::{Tls, TlsFiles};
use crate::transfer_service::TransferService;

/// Runs until stdin ends or the process is told to stop.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn serve_store(flags: StoreFlags) -> Result<(), Fatal> {
    let key = read_ticket_key()?;
    let stdin_ended = exit_with_stdin(flags.socket.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(flags, key, stdin_ended))
}

/// The layout of the blocks, as the store was told it: a serialised `kvasir.common.v1.KvLayout`, in hexadecimal.
fn layout_from_hex(text: &str) -> Result<KvLayout, Fatal> {
    let digits = text.as_bytes().chunks_exact(2);
    let bytes: Option<Vec<u8>> = digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let bytes = bytes.ok_or("--layout is not hexadecimal; give a serialised KvLayout")?;
    let wire =
        common::KvLayout::decode(bytes.as_slice()).map_err(|error| format!("--layout cannot be read: {error}"))?;
    let layout = layout_from_wire(&wire).map_err(|error| format!("--layout: {error}"))?;
    // Whole blocks, however many shards the workers have.
    Ok(KvLayout {
        shard_count: 1,
        ..layout
    })
}

/// Levels at which blocks of a layout are lent: lossless needs nothing, lossy ones the model's profile and its rotation of keys.
fn coders_of(layout: &KvLayout, flags: &StoreFlags, pool: &Arc<KvShards>) -> Result<Arc<Coders>, Fatal> {
    let own = flags.codec_profile.read(flags.model.as_deref(), layout)?;
    let rope = RopeConfig::parse(&layout.rope, layout.head_size);
    if own.is_some() && rope.is_none() {
        let line = &layout.rope;
        return Err(format!(
            "the layout's rotary embedding is {line:?}, which lossy levels cannot undo; use --codec-profile none"
        )
        .into());
    }
    let shape = KvShapeOfModel {
        dtype: layout.dtype,
        layer_count: layout.layer_count,
        kv_head_count: layout.kv_head_count,
        head_size: layout.head_size,
        inverse_frequencies: rope.map(|rope| rope.inverse_frequencies()).unwrap_or_default(),
        fingerprint: layout.fingerprint,
    };
    Ok(Coders::new(shape, own, Arc::new(HostSite(Arc::clone(pool))))?)
}

async fn run(flags: StoreFlags, key: TicketKey, stdin_ended: Arc<Notify>) -> Result<(), Fatal> {
    let own = Identity {
        role: PeerRole::Store,
        id: flags.store_id.clone(),
    };
    let tls = TlsFiles::from_flags(&flags.tls)?
        .map(|files| Tls::load(files, own).map(Arc::new))
        .transpose()?;
    let layout = layout_from_hex(&flags.layout)?;
    let shape = KvShape {
        layer_count: layout.layer_count,
        kv_head_count: layout.kv_head_count,
        head_size: layout.head_size,
        block_size: layout.block_size,
        dtype: layout.dtype,
    };
    let block_bytes = (shape.bytes_per_token() * shape.block_size) as u64;
    let pool = Arc::new(KvShards::new(shape, 1, block_bytes * u64::from(flags.staging_blocks))?);
    let options = StoreOptions {
        memory_bytes: flags.memory_bytes,
        directory: flags.directory.clone(),
        disk_bytes: flags.disk_bytes,
        segment_bytes: flags.segment_bytes,
        ..StoreOptions::default()
    };
    let coders = coders_of(&layout, &flags, &pool)?;
    let codec_profile_ids = coders.describe().into_iter().map(|profile| profile.id).collect();
    let mut recovered = Vec::new();
    let store = Arc::new(Store::open(&options, &mut |block| recovered.push(block))?);
    let telemetry = Telemetry::start(&flags.store_id);
    let sidecar = Arc::new(Sidecar {
        worker_id: flags.store_id.clone(),
        epoch: flags.epoch,
        ticket_key: key,
        pool: Arc::clone(&pool),
        isa: Isa::detect(),
        layout,
        coders,
        exports: Arc::new(Exports::default()),
        fetches: Fetches::default(),
        block_uses: Arc::default(),
        stats: Arc::new(Stats::default()),
        telemetry: telemetry.clone(),
    });
    let listener = TcpListener::bind(flags.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}; choose another --listen", flags.listen))?;
    let transfer_address = advertised(flags.advertise.as_deref(), listener.local_addr()?);
    let has_disk = flags.directory.is_some();
    let shared = Arc::new(Shared {
        description: DescribeStoreResponse {
            epoch: flags.epoch,
            transfer_address: transfer_address.clone(),
            block_bytes: store.occupied_bytes(block_bytes as usize),
            memory_bytes: flags.memory_bytes,
            disk_bytes: if has_disk {
                flags.disk_bytes.saturating_sub(flags.segment_bytes)
            } else {
                0
            },
            codec_profile_ids,
        },
        sidecar: Arc::clone(&sidecar),
        kv_plane: KvPlane::start(flags.transfer_threads, tls)?,
        store,
        staging: Staging::new(pool.block_count()),
        recovered: Mutex::new(recovered),
        exposed: Mutex::new(HashMap::new()),
    });
    let socket = bind_socket(&flags.socket)?;
    let facing = StoreSidecarServiceServer::new(StoreFacing(Arc::clone(&shared)))
        .max_decoding_message_size(http2::MESSAGE_BYTES_MAX);
    let transfer = TransferService {
        sidecar: Arc::clone(&sidecar),
        shard: 0,
    };
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(
        Server::builder()
            .add_service(facing)
            .serve_with_incoming(UnixListenerStream::new(socket)),
    );
    shared.kv_plane.serve(listener, transfer, &mut servers)?;
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            ticks.tick().await;
            sidecar.exports.sweep(unix_ms()).await;
            shared.sweep();
        }
    });
    // Before anyone is told that this process is there to be ended.
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    say(&serde_json::json!({"event": "ready", "socket": flags.socket, "transfer_address": transfer_address}));

    let outcome = tokio::select! {
        ended = servers.join_next() => match ended {
            Some(Ok(Err(error))) => Err(format!("a server ended: {error}").into()),
            _ => Err("a server ended".into()),
        },
        _ = terminate.recv() => Ok(()),
        () = stdin_ended.notified() => Ok(()),
        () = ignore_interrupts() => Ok(()),
    };
    let _ = std::fs::remove_file(&flags.socket);
    servers.shutdown().await;
    tokio::task::spawn_blocking(move || telemetry.shut_down()).await?;
    outcome
}
