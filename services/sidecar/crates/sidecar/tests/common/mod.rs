//! Sidecar processes over a tiny random model, and the calls of their worker.

mod calls;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvasir_model::testing::TestModel;
use kvasir_sidecar::proto::common::KvSource;
use kvasir_sidecar::proto::kernel::kernel_service_client::KernelServiceClient;
use kvasir_sidecar::proto::kernel::{
    DescribeRequest, DescribeResponse, FenceRequest, FetchRequest, FetchResponse, PublishRequest, ReleaseRequest,
    StatsRequest, StatsResponse, SwapRequest, SwapResponse,
};
use kvasir_sidecar::proto::transfer::{Ticket, TicketClaims};
use kvasir_sidecar::ticket::TicketKey;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

pub use calls::*;

/// Nothing here takes this long unless it hangs; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const SCOPE: [u8; 16] = [9; 16];
pub const VOCAB: u32 = 128;
pub const KEY_HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Awaits, but not for ever.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it hangs")
}

/// Asks until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or_else(|_| panic!("never came: {what}"));
}

pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_millis() as u64
}

/// A random-weight model of 4 layers on disk.
pub fn model() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    TestModel {
        layers: 4,
        ..TestModel::default()
    }
    .write_hugging_face(directory.path())
    .expect("a model on disk");
    directory
}

const FLAGS: [(&str, &str); 6] = [
    ("--worker-id", "w"),
    ("--epoch", "7"),
    ("--threads", "1"),
    ("--kv-bytes", "1MiB"),
    ("--kv-dtype", "f32"),
    ("--block-size", "16"),
];

/// The sidecar; in the tests of the simulated device, the one that runs there.
const BINARY: &str = match (
    option_env!("CARGO_BIN_EXE_kvasir-sidecar"),
    option_env!("CARGO_BIN_EXE_kvasir-sidecar-simulated"),
) {
    (Some(binary), _) | (None, Some(binary)) => binary,
    (None, None) => panic!("these tests belong to a crate that has a sidecar"),
};

/// `kvasir-sidecar serve` with these flags beside, or in place of, the usual ones.
pub fn serve_command(model: &Path, socket: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    let usual = FLAGS.iter().filter(|(flag, _)| !extra.contains(flag));
    command
        .arg("serve")
        .args(usual.flat_map(|(flag, value)| [flag, value]))
        .arg("--model")
        .arg(model)
        .arg("--socket")
        .arg(socket)
        .args(extra)
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    command
}

/// A running sidecar, ended when dropped.
pub struct Sidecar {
    pub process: Child,
    pub kernel: KernelServiceClient<Channel>,
    pub about: DescribeResponse,
    pub socket: PathBuf,
    _directory: TempDir,
}

impl Sidecar {
    pub async fn start(model: &Path) -> Self {
        Self::start_with(model, &[]).await
    }

    pub async fn start_with(model: &Path, extra: &[&str]) -> Self {
        Self::start_as(|socket| serve_command(model, socket, extra)).await
    }

    pub async fn start_exporting(model: &Path, otlp_endpoint: &str) -> Self {
        Self::start_as(|socket| {
            let mut command = serve_command(model, socket, &[]);
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", otlp_endpoint);
            command
        })
        .await
    }

    /// Waits for the `ready` line.
    async fn start_as(command: impl FnOnce(&Path) -> Command) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("kernel.sock");
        let mut process = command(&socket).spawn().expect("the binary starts");
        let stdin = process.stdin.as_mut().expect("stdin is piped");
        stdin
            .write_all(format!("{KEY_HEX}\n").as_bytes())
            .await
            .expect("it reads its key");
        let mut lines = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        loop {
            let line = soon(lines.next_line())
                .await
                .expect("stdout is text")
                .expect("it ended before it was ready");
            let event: serde_json::Value = serde_json::from_str(&line).expect("stdout is JSON lines");
            if event["event"] == "ready" {
                assert_eq!(event["socket"], socket.to_str().expect("a plain path"));
                break;
            }
            assert!(event["event"] == "loading" || event["event"] == "device", "{event}");
        }
        let uri = format!("unix://{}", socket.display());
        let channel = Endpoint::from_shared(uri)
            .expect("a path")
            .connect()
            .await
            .expect("it listens");
        let mut kernel = KernelServiceClient::new(channel);
        let about = kernel
            .describe(DescribeRequest {})
            .await
            .expect("it describes itself")
            .into_inner();
        Self {
            process,
            kernel,
            about,
            socket,
            _directory: directory,
        }
    }

    /// Sends SIGTERM and waits for a clean end. Stdin stays open until then: its end is an end of another kind.
    pub async fn terminate(&mut self) {
        let stdin = self.process.stdin.take();
        let id = self.process.id().expect("it runs").to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .await
                .expect("kill")
                .success()
        );
        assert!(soon(self.process.wait()).await.expect("it ends").success());
        drop(stdin);
    }

    pub async fn stats(&self) -> StatsResponse {
        soon(self.kernel.clone().stats(StatsRequest {}))
            .await
            .expect("stats")
            .into_inner()
    }

    /// Opens a prompt to pulls for an hour and returns the ticket.
    pub async fn publish(&self, lease: u8, sequence_id: u64, token_count: u32, block_ids: &[u32]) -> Ticket {
        self.publish_for(lease, sequence_id, token_count, block_ids, 3_600_000)
            .await
    }

    pub async fn publish_for(&self, lease: u8, sequence_id: u64, tokens: u32, blocks: &[u32], life_ms: u64) -> Ticket {
        let expires_at_unix_ms = unix_ms() + life_ms;
        let request = PublishRequest {
            lease_id: vec![lease; 16],
            sequence_id,
            token_count: tokens,
            block_ids: blocks.to_vec(),
            tenant_scope: SCOPE.to_vec(),
            expires_at_unix_ms,
            computed: false,
        };
        soon(self.kernel.clone().publish(request)).await.expect("published");
        self.sign(&TicketClaims {
            lease_id: vec![lease; 16],
            source_worker_id: "w".into(),
            source_epoch: self.about.epoch,
            token_begin: 0,
            token_end: tokens,
            expires_at_unix_ms,
            layout_fingerprint: self.fingerprint(),
            tenant_scope: SCOPE.to_vec(),
        })
    }

    /// Where its KV can be pulled.
    pub fn source(&self) -> KvSource {
        KvSource {
            layout: self.about.layout.clone(),
            shard_addresses: self.about.transfer_addresses.clone(),
            ..KvSource::default()
        }
    }

    pub fn fingerprint(&self) -> Vec<u8> {
        self.about.layout.as_ref().expect("a layout").fingerprint.clone()
    }

    /// Signs as the worker does.
    pub fn sign(&self, claims: &TicketClaims) -> Ticket {
        TicketKey::from_hex(KEY_HEX).expect("a key").sign(claims)
    }

    pub async fn release(&self, lease: u8) {
        let request = ReleaseRequest {
            lease_id: vec![lease; 16],
            slot_ids: vec![],
        };
        soon(self.kernel.clone().release(request)).await.expect("released");
    }

    pub async fn fence(&self, lease: u8) {
        let request = FenceRequest {
            lease_id: vec![lease; 16],
        };
        soon(self.kernel.clone().fence(request)).await.expect("fenced");
    }

    pub async fn fetch(
        &self,
        request: impl tonic::IntoRequest<FetchRequest>,
    ) -> Result<Streaming<FetchResponse>, Status> {
        soon(self.kernel.clone().fetch(request))
            .await
            .map(tonic::Response::into_inner)
    }

    pub async fn swap(&self, request: SwapRequest) -> Result<SwapResponse, Status> {
        soon(self.kernel.clone().swap(request))
            .await
            .map(tonic::Response::into_inner)
    }

    pub async fn execute(&self) -> Execution {
        let (requests, receiver) = mpsc::channel(4);
        let answers = soon(self.kernel.clone().execute(ReceiverStream::new(receiver))).await;
        Execution {
            requests,
            answers: answers.expect("the stream opens").into_inner(),
            step_id: 0,
        }
    }

    /// Closes a stream and opens the next; the sidecar lets it in when it has forgotten the first one's sequences.
    pub async fn execute_after(&self, before: Execution) -> Execution {
        drop(before);
        let mut kernel = self.kernel.clone();
        let opening = async {
            loop {
                let (requests, receiver) = mpsc::channel(4);
                match kernel.execute(ReceiverStream::new(receiver)).await {
                    Ok(answers) => {
                        return Execution {
                            requests,
                            answers: answers.into_inner(),
                            step_id: 0,
                        };
                    }
                    Err(status) => assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}"),
                }
            }
        };
        soon(opening).await
    }
}
