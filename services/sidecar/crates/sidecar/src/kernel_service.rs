//! The worker's side: steps, leases, fetches, counters.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kvasir_engine::{GrammarError, Grammars};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::device::{DeviceAnswer, DeviceCommand, DeviceHandle};
use crate::errors::CallError;
use crate::exports::ExportTerms;
use crate::fetch;
use crate::kv_plane::KvPlane;
use crate::plan_from_wire::{constraint_from_wire, plan_from_wire, response_to_wire};
use crate::proto::kernel;
use crate::proto::kernel::kernel_service_server::KernelService;
use crate::state::Sidecar;
use crate::swaps::Swaps;
use crate::telemetry::context_from_metadata;
use crate::ticket;

const REPORTS_BUFFERED: usize = 16;
const ANSWERS_BUFFERED: usize = 4;
/// One runs, one waits. The buffers below hold as many, so neither side ever blocks the other.
const UNANSWERED_MAX: u32 = 2;

/// What Describe tells beside the layout.
#[derive(Debug, Clone)]
pub struct Description {
    /// Largest position + 1.
    pub context_length: usize,
    /// Logits per position.
    pub vocab_size: usize,
    /// Device, for people.
    pub device: String,
    /// Most tokens in a step.
    pub step_token_max: usize,
    /// Where others pull from each shard.
    pub transfer_addresses: Vec<String>,
}

/// Serves one worker.
pub struct WorkerFacing {
    /// Shared with the transfer service.
    pub sidecar: Arc<Sidecar>,
    /// The device.
    pub device: DeviceHandle,
    /// Compiled constraints.
    pub grammars: Arc<Grammars>,
    /// Constant facts.
    pub description: Description,
    /// Swaps, and host slots.
    pub swaps: Arc<Swaps>,
    /// To other sidecars.
    pub kv_plane: Arc<KvPlane>,
    /// Whether an Execute stream is open.
    pub executing: Arc<AtomicBool>,
    /// When the process began.
    pub born: Instant,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl KernelService for WorkerFacing {
    type ExecuteStream = Answers<kernel::ExecuteResponse>;
    type FetchStream = Answers<kernel::FetchResponse>;

    async fn describe(
        &self,
        _request: Request<kernel::DescribeRequest>,
    ) -> Result<Response<kernel::DescribeResponse>, Status> {
        let pool = &self.sidecar.pool;
        Ok(Response::new(kernel::DescribeResponse {
            layout: Some(self.sidecar.wire_layout()),
            block_count: pool.block_count(),
            kv_bytes_per_token: pool.bytes_per_token() as u32,
            context_length: self.description.context_length as u32,
            vocab_size: self.description.vocab_size as u32,
            epoch: self.sidecar.epoch,
            transfer_addresses: self.description.transfer_addresses.clone(),
            device: self.description.device.clone(),
            step_token_max: self.description.step_token_max as u32,
            codec_profiles: self.sidecar.coders.describe(),
            slot_count: self.swaps.slot_count(),
        }))
    }

    async fn execute(
        &self,
        request: Request<Streaming<kernel::ExecuteRequest>>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        if self.executing.swap(true, Ordering::AcqRel) {
            return Err(CallError::Busy("another Execute stream is open; close it first".into()).into());
        }
        let (sender, receiver) = mpsc::channel(ANSWERS_BUFFERED);
        let (device, executing) = (self.device.clone(), Arc::clone(&self.executing));
        let swaps = Arc::clone(&self.swaps);
        swaps.begin_owner();
        let mut steps = request.into_inner();
        tokio::spawn(async move {
            if let Err(error) = forward_steps(&mut steps, &device, &sender).await {
                // A worker that went away reads no error.
                let _ = sender.send(Err(error.into())).await;
            }
            swaps.end_owner().await;
            // In order behind the last step, so the next stream finds an empty engine.
            let _ = device.send(DeviceCommand::Reset).await;
            executing.store(false, Ordering::Release);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn prepare_constraint(
        &self,
        request: Request<kernel::PrepareConstraintRequest>,
    ) -> Result<Response<kernel::PrepareConstraintResponse>, Status> {
        let invalid = |message: String| CallError::InvalidRequest {
            field: "constraint".into(),
            message,
        };
        let constraint = request.into_inner().constraint.and_then(constraint_from_wire);
        let constraint = constraint.ok_or_else(|| invalid("is empty; name what the text must match".into()))?;
        let grammars = Arc::clone(&self.grammars);
        let checked = tokio::task::spawn_blocking(move || grammars.check(&constraint)).await;
        match checked {
            Ok(Ok(())) => Ok(Response::new(kernel::PrepareConstraintResponse {})),
            Ok(Err(GrammarError::Internal(message))) => Err(CallError::Internal(message).into()),
            Ok(Err(error)) => Err(invalid(error.to_string()).into()),
            Err(error) => Err(CallError::Internal(error.to_string()).into()),
        }
    }

    async fn publish(
        &self,
        request: Request<kernel::PublishRequest>,
    ) -> Result<Response<kernel::PublishResponse>, Status> {
        let request = request.into_inner();
        let block_size = u64::from(self.sidecar.block_size());
        if request.token_count == 0
            || request.block_ids.len() as u64 != u64::from(request.token_count).div_ceil(block_size)
        {
            let message = format!(
                "has {} blocks of {block_size} for {} tokens",
                request.block_ids.len(),
                request.token_count
            );
            return Err(CallError::InvalidRequest {
                field: "block_ids".into(),
                message,
            }
            .into());
        }
        let block_count = self.sidecar.pool.block_count();
        if let Some(block) = request.block_ids.iter().find(|block| **block >= block_count) {
            let message = format!("names block {block} of {block_count}");
            return Err(CallError::InvalidRequest {
                field: "block_ids".into(),
                message,
            }
            .into());
        }
        let terms = ExportTerms {
            lease_id: ticket::id("lease_id", &request.lease_id)?,
            sequence_id: request.sequence_id,
            token_count: request.token_count,
            block_ids: request.block_ids,
            tenant_scope: ticket::id("tenant_scope", &request.tenant_scope)?,
            expires_at_unix_ms: request.expires_at_unix_ms,
        };
        if request.computed {
            self.sidecar.exports.publish_computed(terms)?;
        } else {
            self.sidecar.exports.publish(terms)?;
        }
        Ok(Response::new(kernel::PublishResponse {}))
    }

    async fn release(
        &self,
        request: Request<kernel::ReleaseRequest>,
    ) -> Result<Response<kernel::ReleaseResponse>, Status> {
        let request = request.into_inner();
        let lease_id = ticket::id("lease_id", &request.lease_id)?;
        if request.slot_ids.is_empty() {
            self.sidecar.exports.release(&lease_id).await;
        }
        self.swaps.release(&lease_id, &request.slot_ids).await;
        Ok(Response::new(kernel::ReleaseResponse {}))
    }

    async fn fetch(&self, request: Request<kernel::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let context = context_from_metadata(request.metadata());
        let fetch = fetch::prepare(&self.sidecar, request.into_inner(), context)?;
        let (sender, receiver) = mpsc::channel(REPORTS_BUFFERED);
        self.kv_plane.fetch(Arc::clone(&self.sidecar), fetch, sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn fence(&self, request: Request<kernel::FenceRequest>) -> Result<Response<kernel::FenceResponse>, Status> {
        let lease_id = ticket::id("lease_id", &request.into_inner().lease_id)?;
        self.sidecar.fetches.fence(lease_id);
        self.swaps.fence(&lease_id).await;
        Ok(Response::new(kernel::FenceResponse {}))
    }

    async fn swap(&self, request: Request<kernel::SwapRequest>) -> Result<Response<kernel::SwapResponse>, Status> {
        let context = context_from_metadata(request.metadata());
        let swapped = self.swaps.swap(&self.sidecar, request.into_inner(), &context).await?;
        Ok(Response::new(swapped))
    }

    async fn stats(&self, _request: Request<kernel::StatsRequest>) -> Result<Response<kernel::StatsResponse>, Status> {
        let stats = &self.sidecar.stats;
        let (slots_used, swaps_running) = self.swaps.counts();
        Ok(Response::new(kernel::StatsResponse {
            prompt_tokens_computed: stats.prompt_tokens.load(Ordering::Relaxed),
            decode_tokens_computed: stats.decode_tokens.load(Ordering::Relaxed),
            kv_bytes_received: stats.kv_bytes_received.load(Ordering::Relaxed),
            kv_bytes_sent: stats.kv_bytes_sent.load(Ordering::Relaxed),
            frames_refused: stats.frames_refused.load(Ordering::Relaxed),
            steps: stats.steps.load(Ordering::Relaxed),
            device_nanos: stats.device_nanos.load(Ordering::Relaxed),
            exports_open: self.sidecar.exports.open_count() as u32,
            fetches_running: stats.fetches_running.load(Ordering::Relaxed),
            sequences: stats.sequences.load(Ordering::Relaxed),
            pulls_running: stats.pulls_running.load(Ordering::Relaxed),
            slots_used,
            swaps_running,
            kv_bytes_swapped_out: stats.kv_bytes_swapped_out.load(Ordering::Relaxed),
            kv_bytes_swapped_in: stats.kv_bytes_swapped_in.load(Ordering::Relaxed),
        }))
    }

    async fn health(
        &self,
        _request: Request<kernel::HealthRequest>,
    ) -> Result<Response<kernel::HealthResponse>, Status> {
        let stats = &self.sidecar.stats;
        let began = stats.step_began_nanos.load(Ordering::Relaxed);
        let now = u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(Response::new(kernel::HealthResponse {
            steps_done: stats.steps.load(Ordering::Relaxed),
            current_step_nanos: if began == 0 { 0 } else { now.saturating_sub(began) },
        }))
    }

    async fn list_spans(
        &self,
        request: Request<kernel::ListSpansRequest>,
    ) -> Result<Response<kernel::ListSpansResponse>, Status> {
        let spans = self.sidecar.telemetry.ring.of_trace(&request.into_inner().trace_id);
        Ok(Response::new(kernel::ListSpansResponse { spans }))
    }
}

/// Sends each request to the device and each answer back, both in order, until one side ends.
async fn forward_steps(
    steps: &mut Streaming<kernel::ExecuteRequest>,
    device: &DeviceHandle,
    sender: &mpsc::Sender<Result<kernel::ExecuteResponse, Status>>,
) -> Result<(), CallError> {
    let (answer, mut answers) = mpsc::channel::<DeviceAnswer>(ANSWERS_BUFFERED);
    let mut expected_step = 1;
    let mut unanswered = 0u32;
    let mut reading = true;
    while reading || unanswered > 0 {
        tokio::select! {
            request = steps.message(), if reading => {
                let Some(request) = request.map_err(|status| CallError::Cancelled(status.message().to_owned()))? else {
                    reading = false;
                    continue;
                };
                if request.step_id != expected_step {
                    let message = format!("is {}; {expected_step} is next", request.step_id);
                    return Err(CallError::InvalidRequest { field: "step_id".into(), message });
                }
                if unanswered == UNANSWERED_MAX {
                    let message = format!("comes while {UNANSWERED_MAX} steps are unanswered; wait for an answer");
                    return Err(CallError::InvalidRequest { field: "step_id".into(), message });
                }
                expected_step += 1;
                unanswered += 1;
                let step_id = request.step_id;
                let (plan, traceparents) = plan_from_wire(request);
                let command = DeviceCommand::Step { plan, traceparents, answer: answer.clone(), step_id };
                device.send(command).await.map_err(|_| CallError::Internal("the device thread has ended".into()))?;
            }
            Some(answered) = answers.recv() => {
                unanswered -= 1;
                let response = response_to_wire(answered)
                    .map_err(|error| CallError::InvalidRequest { field: "step".into(), message: error.to_string() })?;
                if sender.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            () = sender.closed() => return Ok(()),
        }
    }
    Ok(())
}
