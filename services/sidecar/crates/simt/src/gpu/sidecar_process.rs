//! A sidecar process and the calls of its worker.

use kvasir_sidecar::proto::common::KvSource;
use kvasir_sidecar::proto::kernel::kernel_service_client::KernelServiceClient;
use kvasir_sidecar::proto::kernel::{
    DescribeRequest, DescribeResponse, ExecuteRequest, ExecuteResponse, FenceRequest, FetchRequest, FetchResponse,
    PublishRequest, ReleaseRequest,
};
use kvasir_sidecar::proto::transfer::{Ticket, TicketClaims};
use kvasir_sidecar::ticket::TicketKey;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// The only tenant.
pub const SCOPE: [u8; 16] = [9; 16];
const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const LEASE: Duration = Duration::from_secs(3600);

/// A running sidecar, ended when dropped.
pub struct SidecarProcess {
    /// What it says of itself.
    pub about: DescribeResponse,
    kernel: KernelServiceClient<Channel>,
    key: TicketKey,
    _process: Child,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl SidecarProcess {
    /// Starts one on GPU 0 and waits until it is ready.
    ///
    /// # Errors
    /// What failed, in one line; its own words are on stderr.
    pub async fn start(binary: &Path, kernels: &Path, model: &Path, kv_bytes: u64, name: &str) -> Result<Self, String> {
        let socket = model.join(format!("{name}.sock"));
        let mut process = Command::new(binary)
            .args(["serve", "--device", "cuda:0", "--worker-id", name, "--epoch", "1"])
            .args(["--step-token-max", "2048", "--kv-bytes", &kv_bytes.to_string()])
            .arg("--kernels")
            .arg(kernels)
            .arg("--model")
            .arg(model)
            .arg("--socket")
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{}: {error}", binary.display()))?;
        let stdin = process.stdin.as_mut().ok_or("the sidecar has no stdin")?;
        stdin.write_all(format!("{KEY}\n").as_bytes()).await.map_err(text)?;
        let stdout = process.stdout.take().ok_or("the sidecar has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        loop {
            let line = lines.next_line().await.map_err(text)?;
            let line = line.ok_or("the sidecar ended before it was ready; it says why above")?;
            if line.contains("\"event\":\"ready\"") {
                break;
            }
        }
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(text)?;
        let mut kernel = KernelServiceClient::new(endpoint.connect().await.map_err(text)?);
        let about = kernel.describe(DescribeRequest {}).await.map_err(text)?.into_inner();
        Ok(Self {
            about,
            kernel,
            key: TicketKey::from_hex(KEY).ok_or("the ticket key is not one")?,
            _process: process,
        })
    }

    /// Tokens of a block.
    pub fn block_size(&self) -> u32 {
        self.about.layout.as_ref().map_or(16, |layout| layout.block_size).max(1)
    }

    /// Where its KV can be pulled.
    pub fn source(&self) -> KvSource {
        KvSource {
            layout: self.about.layout.clone(),
            shard_addresses: self.about.transfer_addresses.clone(),
            ..KvSource::default()
        }
    }

    /// Opens a prompt to pulls; `computed` when its KV is there already.
    ///
    /// # Errors
    /// The sidecar's.
    pub async fn publish(
        &self,
        lease: u8,
        sequence_id: u64,
        token_count: u32,
        block_ids: &[u32],
        computed: bool,
    ) -> Result<Ticket, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(text)?;
        let expires_at_unix_ms = (now + LEASE).as_millis() as u64;
        let request = PublishRequest {
            lease_id: vec![lease; 16],
            sequence_id,
            token_count,
            block_ids: block_ids.to_vec(),
            tenant_scope: SCOPE.to_vec(),
            expires_at_unix_ms,
            computed,
        };
        self.kernel.clone().publish(request).await.map_err(text)?;
        let layout = self.about.layout.as_ref();
        Ok(self.key.sign(&TicketClaims {
            lease_id: vec![lease; 16],
            source_worker_id: "source".into(),
            source_epoch: self.about.epoch,
            token_begin: 0,
            token_end: token_count,
            expires_at_unix_ms,
            layout_fingerprint: layout.map_or(Vec::new(), |layout| layout.fingerprint.clone()),
            tenant_scope: SCOPE.to_vec(),
        }))
    }

    /// Begins a pull.
    ///
    /// # Errors
    /// The sidecar's.
    pub async fn fetch(&self, request: FetchRequest) -> Result<Reports, String> {
        let reports = self.kernel.clone().fetch(request).await.map_err(text)?;
        Ok(Reports(reports.into_inner()))
    }

    /// Ends an export.
    ///
    /// # Errors
    /// The sidecar's.
    pub async fn release(&self, lease: u8) -> Result<(), String> {
        let request = ReleaseRequest {
            slot_ids: vec![],
            lease_id: vec![lease; 16],
        };
        self.kernel.clone().release(request).await.map(drop).map_err(text)
    }

    /// Ends a pull.
    ///
    /// # Errors
    /// The sidecar's.
    pub async fn fence(&self, lease: u8) -> Result<(), String> {
        let request = FenceRequest {
            lease_id: vec![lease; 16],
        };
        self.kernel.clone().fence(request).await.map(drop).map_err(text)
    }

    /// Opens a stream of steps; the one before must have been dropped, and is forgotten first.
    ///
    /// # Errors
    /// The sidecar's.
    pub async fn execute(&self) -> Result<Calls, String> {
        for _ in 0..200 {
            let (requests, receiver) = mpsc::channel(4);
            match self.kernel.clone().execute(ReceiverStream::new(receiver)).await {
                Ok(answers) => {
                    return Ok(Calls {
                        requests,
                        answers: answers.into_inner(),
                        step_id: 0,
                    });
                }
                Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(status) => return Err(text(status)),
            }
        }
        Err("the sidecar does not end the stream before this one".into())
    }
}

/// Reports of a pull.
pub struct Reports(Streaming<FetchResponse>);

impl Reports {
    /// Reads until tokens up to here are in place, and the pull is over; nanoseconds that it took.
    ///
    /// # Errors
    /// The sidecar's.
    pub async fn until(&mut self, token_end: u32) -> Result<u64, String> {
        let mut last = FetchResponse::default();
        while let Some(report) = self.0.message().await.map_err(text)? {
            last = report;
        }
        if last.verified_token_end == token_end && last.complete {
            Ok(last.transfer_nanos)
        } else {
            Err(format!(
                "a pull ended at token {} of {token_end}",
                last.verified_token_end
            ))
        }
    }
}

/// A stream of steps.
pub struct Calls {
    requests: mpsc::Sender<ExecuteRequest>,
    answers: Streaming<ExecuteResponse>,
    step_id: u64,
}

impl Calls {
    /// Sends a step; its number is given here.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn send(&mut self, mut request: ExecuteRequest) -> Result<(), String> {
        self.step_id += 1;
        request.step_id = self.step_id;
        self.requests.send(request).await.map_err(text)
    }

    /// The next answer.
    ///
    /// # Errors
    /// The step's.
    pub async fn answer(&mut self) -> Result<ExecuteResponse, String> {
        let answer = self.answers.message().await.map_err(text)?;
        answer.ok_or("the stream of steps ended".into())
    }
}
