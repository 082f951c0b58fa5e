//! The threads that move KV. Each runs a small runtime of its own: what a connection reads is verified and placed by the thread that read it,
//! without waking another, and no transfer stands between a step and its worker.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tonic::Status;
use tonic::service::interceptor::InterceptedService;

use crate::connections::Connections;
use crate::fetch::{self, Fetch};
use crate::http2;
use crate::proto::kernel::FetchResponse;
use crate::proto::transfer::kv_transfer_service_server::KvTransferServiceServer;
use crate::state::Sidecar;
use crate::stats::GaugeGuard;
use crate::tls::Tls;
use crate::transfer_listener::{admit_puller, connections};
use crate::transfer_service::TransferService;

/// The threads; they end when it is dropped.
pub struct KvPlane {
    threads: Vec<Thread>,
    tls: Option<Arc<Tls>>,
    _alive: watch::Sender<()>,
}

struct Thread {
    runtime: Handle,
    connections: Arc<Connections>,
}

impl KvPlane {
    /// Starts at least one thread; connections use mutual TLS when `tls` is given.
    ///
    /// # Errors
    /// When the machine gives no thread.
    pub fn start(thread_count: usize, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let (alive, ended) = watch::channel(());
        let start = |index: usize| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let mut ended = ended.clone();
            std::thread::Builder::new()
                .name(format!("kv-plane-{index}"))
                .spawn(move || runtime.block_on(async { while ended.changed().await.is_ok() {} }))?;
            Ok(Thread {
                runtime: handle,
                connections: Arc::new(Connections::new(tls.clone())),
            })
        };
        let threads = (0..thread_count.max(1)).map(start).collect::<io::Result<_>>()?;
        Ok(Self {
            threads,
            tls,
            _alive: alive,
        })
    }

    /// Serves pulls on all threads: the one that accepts a connection keeps it.
    ///
    /// # Errors
    /// When the listener cannot be shared.
    pub fn serve(
        &self,
        listener: TcpListener,
        service: TransferService,
        servers: &mut JoinSet<Result<(), tonic::transport::Error>>,
    ) -> io::Result<()> {
        let listener = listener.into_std()?;
        let service = KvTransferServiceServer::new(service).max_encoding_message_size(http2::MESSAGE_BYTES_MAX);
        let service = InterceptedService::new(service, admit_puller);
        for Thread { runtime, .. } in &self.threads {
            let _entered = runtime.enter();
            let incoming = connections(TcpListener::from_std(listener.try_clone()?)?, self.tls.clone());
            let serving = http2::server().add_service(service.clone());
            servers.spawn_on(serving.serve_with_incoming(incoming), runtime);
        }
        Ok(())
    }

    /// Runs a fetch on the thread that has the connection to its source; see [`fetch::run`].
    pub fn fetch(
        &self,
        sidecar: Arc<Sidecar>,
        fetch: Fetch,
        reports: mpsc::Sender<Result<FetchResponse, Status>>,
    ) -> JoinHandle<()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&fetch.addresses);
        let Thread { runtime, connections } = &self.threads[hash as usize % self.threads.len()];
        let connections = Arc::clone(connections);
        runtime.spawn(async move {
            let _running = GaugeGuard::new(&sidecar.stats.fetches_running);
            fetch::run(&sidecar, &connections, fetch, reports).await;
        })
    }
}
