//! `kvasir-sidecar serve`: load, listen, share the worker's fate.

use std::io::{BufRead, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use kvasir_engine::{Engine, Grammars, Isa, SwapSpace};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::block_uses::BlockUses;
use crate::cli::ServeFlags;
use crate::coders::Coders;
use crate::device::start_device;
use crate::exports::Exports;
use crate::fetches::Fetches;
use crate::gpus::Gpus;
use crate::http2;
use crate::identity::Identity;
use crate::kernel_service::{Description, WorkerFacing};
use crate::kv_plane::KvPlane;
use crate::loading::{Loaded, load_engine_on};
use crate::proto::kernel::kernel_service_server::KernelServiceServer;
use crate::state::Sidecar;
use crate::stats::Stats;
use crate::swaps::Swaps;
use crate::telemetry::{Telemetry, unix_ms};
use crate::text_kv::shape_of;
use crate::ticket::TicketKey;
use crate::tls::{Tls, TlsFiles};
use crate::transfer_service::TransferService;

pub use crate::loading::{engine_options, load_engine};

/// Anything that ends the process; shown as one line.
pub type Fatal = Box<dyn std::error::Error + Send + Sync>;

pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// What sending the last spans may take when the worker is gone. Larger: a slow collector gets them; smaller: memory is free sooner.
const LAST_SPANS_MAX: Duration = Duration::from_secs(1);

/// Runs until stdin ends or the process is told to stop.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn serve(flags: ServeFlags, gpus: &dyn Gpus) -> Result<(), Fatal> {
    let key = read_ticket_key()?;
    let stdin_ended = exit_with_stdin(flags.socket.clone());
    let tls = load_tls(&flags)?;
    let mut last = Instant::now();
    let loaded = load_engine_on(&flags.engine, gpus, &mut |done_bytes, total_bytes| {
        if last.elapsed() > Duration::from_millis(200) || done_bytes == total_bytes {
            last = Instant::now();
            say(&serde_json::json!({"event": "loading", "done_bytes": done_bytes, "total_bytes": total_bytes}));
        }
    })?;
    let Loaded {
        mut engine,
        why_cpu,
        swap_bytes,
        site,
    } = loaded;
    say(&serde_json::json!({"event": "device", "device": engine.description(), "reason": why_cpu}));
    let config = engine.config();
    let grammars = Grammars::of_model(&flags.engine.model, config.vocab_size, &config.eos_token_ids);
    let grammars = Arc::new(grammars);
    engine.set_grammars(Arc::clone(&grammars));
    let swap_space = (swap_bytes > 0).then(|| SwapSpace::new(engine.pool(), swap_bytes));
    let swap_space = swap_space
        .transpose()
        .map_err(|error| format!("--swap-bytes: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let own = flags.codec_profile.read(Some(&flags.engine.model), engine.layout())?;
    let coders = Coders::new(shape_of(&engine), own, site)?;
    runtime.block_on(run(
        flags,
        key,
        tls,
        (engine, swap_space, coders),
        grammars,
        stdin_ended,
    ))
}

/// The certificates of the worker whose sidecar this is.
fn load_tls(flags: &ServeFlags) -> Result<Option<Arc<Tls>>, Fatal> {
    let Some(files) = TlsFiles::from_flags(&flags.tls)? else {
        return Ok(None);
    };
    let own = Identity {
        role: flags.role.into(),
        id: flags.worker_id.clone(),
    };
    Ok(Some(Arc::new(Tls::load(files, own)?)))
}

async fn run(
    flags: ServeFlags,
    key: TicketKey,
    tls: Option<Arc<Tls>>,
    (engine, swap_space, coders): (Engine, Option<SwapSpace>, Arc<Coders>),
    grammars: Arc<Grammars>,
    stdin_ended: Arc<Notify>,
) -> Result<(), Fatal> {
    let telemetry = Telemetry::start(&flags.worker_id);
    let (exports, stats) = (Arc::new(Exports::default()), Arc::new(Stats::default()));
    let block_uses = Arc::new(BlockUses::default());
    let meets_swaps = swap_space.is_some().then(|| Arc::clone(&block_uses));
    let swaps = Arc::new(Swaps::start(swap_space, Arc::clone(&block_uses), &stats)?);
    let sidecar = Arc::new(Sidecar {
        worker_id: flags.worker_id.clone(),
        epoch: flags.epoch,
        ticket_key: key,
        pool: engine.pool(),
        isa: Isa::detect(),
        layout: engine.layout().clone(),
        coders,
        exports: Arc::clone(&exports),
        fetches: Fetches::default(),
        block_uses,
        stats: Arc::clone(&stats),
        telemetry: telemetry.clone(),
    });
    let (mut listeners, mut transfer_addresses) = (Vec::new(), Vec::new());
    for shard in 0..flags.engine.shards {
        let listener = listen_for_shard(flags.listen, shard).await?;
        transfer_addresses.push(advertised(flags.advertise.as_deref(), listener.local_addr()?));
        listeners.push(listener);
    }
    let description = Description {
        context_length: engine.config().context_length,
        vocab_size: engine.config().vocab_size,
        device: engine.description(),
        step_token_max: flags.engine.step_token_max,
        transfer_addresses,
    };
    let device = start_device(engine, Arc::clone(&exports), meets_swaps, stats, telemetry.clone())?;
    let device_thread = device.clone();
    let kv_plane = Arc::new(KvPlane::start(flags.transfer_threads, tls)?);
    let worker_facing = WorkerFacing {
        sidecar: Arc::clone(&sidecar),
        device,
        grammars,
        description,
        swaps,
        kv_plane: Arc::clone(&kv_plane),
        executing: Arc::new(AtomicBool::new(false)),
        born: Instant::now(),
    };
    let socket = bind_socket(&flags.socket)?;
    let kernel = KernelServiceServer::new(worker_facing)
        .max_decoding_message_size(http2::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(http2::MESSAGE_BYTES_MAX);
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(
        Server::builder()
            .add_service(kernel)
            .serve_with_incoming(UnixListenerStream::new(socket)),
    );
    for (shard, listener) in listeners.into_iter().enumerate() {
        let service = TransferService {
            sidecar: Arc::clone(&sidecar),
            shard,
        };
        kv_plane.serve(listener, service, &mut servers)?;
    }
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            ticks.tick().await;
            exports.sweep(unix_ms()).await;
        }
    });
    // Before anyone is told that this process is there to be ended.
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    say(&serde_json::json!({"event": "ready", "socket": flags.socket}));

    let outcome = tokio::select! {
        ended = servers.join_next() => match ended {
            Some(Ok(Err(error))) => Err(format!("a server ended: {error}").into()),
            _ => Err("a server ended".into()),
        },
        () = device_thread.closed() => Err("the device thread ended; its message is above".into()),
        _ = terminate.recv() => Ok(()),
        () = stdin_ended.notified() => Ok(()),
        // A terminal's Ctrl-C reaches the whole group; the worker says when to stop.
        () = ignore_interrupts() => Ok(()),
    };
    let _ = std::fs::remove_file(&flags.socket);
    servers.shutdown().await;
    tokio::task::spawn_blocking(move || telemetry.shut_down()).await?;
    outcome
}

pub(crate) async fn ignore_interrupts() {
    while tokio::signal::ctrl_c().await.is_ok() {}
    std::future::pending().await
}

/// A socket that only this user can open, in place of a stale one.
pub(crate) fn bind_socket(path: &PathBuf) -> Result<UnixListener, Fatal> {
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)
        .map_err(|error| format!("cannot listen on {}: {error}; choose another --socket", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Each shard has a port of its own: the next ones after the first's, or free ones.
async fn listen_for_shard(first: SocketAddr, shard: usize) -> Result<TcpListener, Fatal> {
    let port = match first.port() {
        0 => Some(0),
        port => u16::try_from(usize::from(port) + shard).ok(),
    };
    let port = port.ok_or_else(|| format!("shard {shard} has no port after {first}; choose a lower --listen"))?;
    let address = SocketAddr::new(first.ip(), port);
    Ok(TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}; choose another --listen"))?)
}

/// What peers are told to connect to.
pub(crate) fn advertised(host: Option<&str>, bound: SocketAddr) -> String {
    match host {
        Some(host) => format!("{host}:{}", bound.port()),
        None => bound.to_string(),
    }
}

pub(crate) fn read_ticket_key() -> Result<TicketKey, Fatal> {
    let mut line = String::new();
    // Locked for this line only: the watcher reads on.
    std::io::stdin().lock().read_line(&mut line)?;
    TicketKey::from_hex(line.trim())
        .ok_or_else(|| "the first line of stdin is not a ticket key; give 64 hex digits, then keep stdin open".into())
}

/// The worker holds stdin open as long as it lives. At its end the servers stop, spans are sent, and whatever that takes, the process ends.
pub(crate) fn exit_with_stdin(socket: PathBuf) -> Arc<Notify> {
    let ended = Arc::new(Notify::new());
    let told = Arc::clone(&ended);
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        let mut stdin = std::io::stdin().lock();
        while stdin.read(&mut buffer).is_ok_and(|count| count > 0) {}
        let _ = std::fs::remove_file(socket);
        told.notify_one();
        std::thread::sleep(LAST_SPANS_MAX);
        std::process::exit(0);
    });
    ended
}

/// One JSON line to the worker. A worker that is gone ends us through stdin.
pub(crate) fn say(event: &serde_json::Value) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{event}").and_then(|()| stdout.flush());
}
