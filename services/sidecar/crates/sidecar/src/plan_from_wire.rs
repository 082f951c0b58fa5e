//! `ExecuteRequest` to the engine's plan and back.

use kvasir_engine::{
    Constraint, Placement, SampledToken, SamplingParams, SequenceStart, Slice, SliceOutcome, StepPlan, TokenLogprob,
};

use crate::device::DeviceAnswer;
use crate::proto::{common, kernel};

/// The plan, and the trace contexts of its new sequences. Nothing is checked here: the engine does, whole.
pub fn plan_from_wire(request: kernel::ExecuteRequest) -> (StepPlan, Vec<(u64, String)>) {
    let mut traceparents = Vec::new();
    let starts = request
        .starts
        .into_iter()
        .map(|start| {
            if !start.traceparent.is_empty() {
                traceparents.push((start.sequence_id, start.traceparent));
            }
            SequenceStart {
                sequence_id: start.sequence_id,
                prompt_token_count: start.prompt_token_count,
                sampling: sampling_from_wire(start.sampling.unwrap_or_default()),
                block_ids: start.block_ids,
                prompt_token_ids: start.prompt_token_ids,
            }
        })
        .collect();
    let slices = request
        .slices
        .into_iter()
        .map(|slice| Slice {
            sequence_id: slice.sequence_id,
            start_position: slice.start_position,
            token_count: slice.token_count,
            token_ids: slice.token_ids,
            appended_block_ids: slice.appended_block_ids,
            sample: slice.sample,
        })
        .collect();
    (
        StepPlan {
            placements: request.placements.into_iter().map(placement_from_wire).collect(),
            starts,
            slices,
            dropped: request.dropped_sequence_ids,
        },
        traceparents,
    )
}

fn placement_from_wire(wire: kernel::KvPlacement) -> Placement {
    Placement {
        source_block_ids: wire.source_block_ids,
        source_start: wire.source_start,
        target_block_ids: wire.target_block_ids,
        target_start: wire.target_start,
        token_count: wire.token_count,
        position_shift: wire.position_shift,
    }
}

fn sampling_from_wire(wire: common::SamplingParams) -> SamplingParams {
    SamplingParams {
        temperature: wire.temperature,
        top_k: wire.top_k,
        top_p: wire.top_p,
        seed: wire.seed,
        max_tokens: wire.max_tokens,
        stop_token_ids: wire.stop_token_ids,
        logprobs: wire.logprobs,
        top_logprobs: wire.top_logprobs,
        min_p: wire.min_p,
        typical_p: wire.typical_p,
        repetition_penalty: wire.repetition_penalty,
        presence_penalty: wire.presence_penalty,
        frequency_penalty: wire.frequency_penalty,
        logit_bias: wire
            .logit_bias
            .into_iter()
            .map(|entry| (entry.token_id, entry.bias))
            .collect(),
        min_tokens: wire.min_tokens,
        bad_words: wire.bad_words.into_iter().map(|word| word.token_ids).collect(),
        prompt_logprobs: wire.prompt_logprobs,
        constraint: wire.constraint.and_then(constraint_from_wire),
    }
}

/// Absent when it says nothing.
pub fn constraint_from_wire(wire: common::Constraint) -> Option<Constraint> {
    use common::constraint::Kind;
    Some(match wire.kind? {
        Kind::JsonObject(_) => Constraint::JsonObject,
        Kind::JsonSchema(text) => Constraint::JsonSchema(text),
        Kind::Regex(text) => Constraint::Regex(text),
        Kind::Choice(choice) => Constraint::Choice(choice.texts),
    })
}

/// The answer of a step that ran.
pub fn response_to_wire(answer: DeviceAnswer) -> Result<kernel::ExecuteResponse, kvasir_engine::StepError> {
    let output = answer.outcome?;
    let results = output
        .results
        .into_iter()
        .map(|result| kernel::SliceResult {
            sequence_id: result.sequence_id,
            outcome: match result.outcome {
                SliceOutcome::Computed => kernel::SliceOutcome::Computed,
                SliceOutcome::Sampled => kernel::SliceOutcome::Sampled,
                SliceOutcome::Stopped => kernel::SliceOutcome::Stopped,
                SliceOutcome::Skipped => kernel::SliceOutcome::Skipped,
            }
            .into(),
            token: result.token.map(token_to_wire),
        })
        .collect();
    Ok(kernel::ExecuteResponse {
        step_id: answer.step_id,
        results,
        device_nanos: output.device_nanos,
        device_idle_nanos: answer.idle_nanos,
    })
}

fn token_to_wire(token: SampledToken) -> common::SampledToken {
    let prompt = token.prompt_logprobs.into_iter().map(|entry| common::PromptLogprob {
        token_id: entry.token_id,
        logprob: entry.logprob,
        rank: entry.rank,
        top_logprobs: top_to_wire(entry.top_logprobs),
    });
    common::SampledToken {
        token_id: token.token_id,
        logprob: token.logprob,
        top_logprobs: top_to_wire(token.top_logprobs),
        prompt_logprobs: prompt.collect(),
    }
}

fn top_to_wire(top: Vec<TokenLogprob>) -> Vec<common::TokenLogprob> {
    top.into_iter()
        .map(|TokenLogprob { token_id, logprob }| common::TokenLogprob { token_id, logprob })
        .collect()
}
