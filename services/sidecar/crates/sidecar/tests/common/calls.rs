//! Requests, streams and answers of a worker.

use kvasir_sidecar::proto::common::{ErrorDetail, ErrorReason, KvSource, SamplingParams};
use kvasir_sidecar::proto::kernel::{
    ExecuteRequest, ExecuteResponse, FetchRequest, FetchResponse, SequenceSlice, SequenceStart, SwapDirection,
    SwapRequest,
};
use kvasir_sidecar::proto::transfer::Ticket;
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming};

use super::{SCOPE, VOCAB, soon};

/// A request to fetch tokens `[0, token_end)` from a source.
pub fn fetch_request(source: KvSource, ticket: Ticket, lease: u8, token_end: u32, blocks: &[u32]) -> FetchRequest {
    FetchRequest {
        lease_id: vec![lease; 16],
        ticket: Some(ticket),
        source: Some(source),
        block_ids: blocks.to_vec(),
        token_begin: 0,
        token_end,
        tenant_scope: SCOPE.to_vec(),
        ..FetchRequest::default()
    }
}

/// A swap of blocks to the host, under one lease for all.
pub fn swap_out(swap: u8, blocks: &[u32]) -> SwapRequest {
    SwapRequest {
        lease_id: vec![77; 16],
        swap_id: vec![swap; 16],
        direction: SwapDirection::Out.into(),
        block_ids: blocks.to_vec(),
        slot_ids: vec![],
    }
}

/// A swap of slots to blocks.
pub fn swap_in(swap: u8, slots: &[u32], blocks: &[u32]) -> SwapRequest {
    SwapRequest {
        direction: SwapDirection::In.into(),
        slot_ids: slots.to_vec(),
        ..swap_out(swap, blocks)
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
        let request = ExecuteRequest {
            starts,
            slices,
            dropped_sequence_ids,
            ..ExecuteRequest::default()
        };
        self.send(request).await
    }

    /// One step; its number is given here.
    pub async fn send(&mut self, mut request: ExecuteRequest) -> Result<ExecuteResponse, Status> {
        self.step_id += 1;
        request.step_id = self.step_id;
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
        prompt_token_ids: Vec::new(),
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
