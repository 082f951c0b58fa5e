//! Sidecar processes over a tiny random model, and the calls of their worker.
#![allow(dead_code)] // Each test file uses its part.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvasir_model::testing::TestModel;
use kvasir_sidecar::proto::common::{ErrorDetail, ErrorReason, SamplingParams};
use kvasir_sidecar::proto::kernel::kernel_service_client::KernelServiceClient;
use kvasir_sidecar::proto::kernel::{
    DescribeRequest, DescribeResponse, ExecuteRequest, ExecuteResponse, FenceRequest, FetchRequest, FetchResponse,
    PublishRequest, ReleaseRequest, SequenceSlice, SequenceStart, StatsRequest, StatsResponse,
};
use kvasir_sidecar::proto::transfer::{CodecLevel, Ticket, TicketClaims};
use kvasir_sidecar::ticket::TicketKey;
use prost::Message;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// Nothing here takes this long unless it hangs; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const SCOPE: [u8; 16] = [9; 16];
pub const VOCAB: u32 = 128;
const KEY_HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

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

/// `kvasir-sidecar serve` with these flags beside, or in place of, the usual ones.
pub fn serve_command(model: &Path, socket: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvasir-sidecar"));
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

    /// Waits for the `ready` line.
    pub async fn start_with(model: &Path, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("kernel.sock");
        let mut process = serve_command(model, &socket, extra).spawn().expect("the binary starts");
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
            assert_eq!(event["event"], "loading");
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

/// A request to fetch tokens `[0, token_end)` from a source.
pub fn fetch_request(source: &str, ticket: Ticket, lease: u8, token_end: u32, blocks: &[u32]) -> FetchRequest {
    FetchRequest {
        lease_id: vec![lease; 16],
        ticket: Some(ticket),
        source_address: source.to_owned(),
        block_ids: blocks.to_vec(),
        token_begin: 0,
        token_end,
        tenant_scope: SCOPE.to_vec(),
        level: CodecLevel::Raw.into(),
        stall_timeout_ms: 0,
    }
}

/// With a W3C trace context.
pub fn traced(request: FetchRequest, traceparent: &str) -> Request<FetchRequest> {
    let mut request = Request::new(request);
    request
        .metadata_mut()
        .insert("traceparent", traceparent.parse().expect("ASCII"));
    request
}

/// Reads reports until tokens up to here are in place.
pub async fn verified(reports: &mut Streaming<FetchResponse>, token_end: u32) -> FetchResponse {
    loop {
        let report = soon(reports.message())
            .await
            .expect("the fetch goes on")
            .expect("the fetch goes on");
        assert!(
            report.verified_token_end <= token_end,
            "{report:?} is beyond what was computed"
        );
        if report.verified_token_end == token_end {
            return report;
        }
    }
}

/// The last report, or how the fetch failed.
pub async fn outcome(mut reports: Streaming<FetchResponse>) -> Result<FetchResponse, Status> {
    let mut last = None;
    while let Some(report) = soon(reports.message()).await? {
        last = Some(report);
    }
    Ok(last.expect("a fetch reports before it ends"))
}

pub fn reason(status: &Status) -> ErrorReason {
    let detail = status
        .metadata()
        .get_bin("kvasir-error-bin")
        .expect("an error has a detail");
    let detail = ErrorDetail::decode(detail.to_bytes().expect("base64")).expect("an ErrorDetail");
    assert_eq!(detail.message, status.message());
    detail.reason()
}

/// An Execute stream.
pub struct Execution {
    pub requests: mpsc::Sender<ExecuteRequest>,
    pub answers: Streaming<ExecuteResponse>,
    pub step_id: u64,
}

impl Execution {
    pub async fn step(
        &mut self,
        starts: Vec<SequenceStart>,
        slices: Vec<SequenceSlice>,
        dropped_sequence_ids: Vec<u64>,
    ) -> Result<ExecuteResponse, Status> {
        self.step_id += 1;
        let request = ExecuteRequest {
            step_id: self.step_id,
            starts,
            slices,
            dropped_sequence_ids,
        };
        // A stream that ended says why below.
        let _ = self.requests.send(request).await;
        soon(self.answers.message())
            .await
            .map(|answer| answer.expect("an answer"))
    }

    /// One token after another, greedily, from the one that is given or, without, from the one sampled last.
    pub async fn decode(&mut self, sequence_id: u64, position: u32, first: Option<u32>, count: u32) -> Vec<u32> {
        let mut tokens = Vec::new();
        for index in 0..count {
            let token_ids = if index == 0 {
                first.into_iter().collect()
            } else {
                Vec::new()
            };
            let slice = SequenceSlice {
                sample: true,
                ..slice(sequence_id, position + index, token_ids)
            };
            let answer = self
                .step(
                    vec![],
                    vec![SequenceSlice {
                        token_count: 1,
                        ..slice
                    }],
                    vec![],
                )
                .await;
            tokens.push(sampled(&answer.expect("a decode step")));
        }
        tokens
    }
}

/// The only token of an answer.
pub fn sampled(answer: &ExecuteResponse) -> u32 {
    answer.results[0].token.as_ref().expect("a sampled token").token_id
}

pub fn start(sequence_id: u64, prompt_token_count: u32, block_ids: &[u32]) -> SequenceStart {
    SequenceStart {
        sequence_id,
        prompt_token_count,
        sampling: Some(SamplingParams {
            max_tokens: 64,
            ..SamplingParams::default()
        }),
        block_ids: block_ids.to_vec(),
        traceparent: String::new(),
    }
}

pub fn slice(sequence_id: u64, start_position: u32, token_ids: Vec<u32>) -> SequenceSlice {
    SequenceSlice {
        sequence_id,
        start_position,
        token_count: token_ids.len() as u32,
        token_ids,
        appended_block_ids: vec![],
        sample: false,
    }
}

/// A prompt that depends on its seed in every block.
pub fn prompt(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|i| (i * 37 + seed * 11 + i * i % 13) % VOCAB).collect()
}
