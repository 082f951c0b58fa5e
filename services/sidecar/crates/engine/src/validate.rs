//! Whether a step can run, decided before anything is touched. Pure.

use crate::error::StepError;
use crate::plan::{SamplingParams, SequenceStart, Slice, StepPlan};
use crate::sequence::Sequence;
use std::collections::{HashMap, HashSet};

/// What plans are checked against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) block_size: usize,
    pub(crate) block_count: u32,
    pub(crate) context_length: usize,
    pub(crate) vocab_size: usize,
    pub(crate) step_token_max: usize,
}

/// Most likely tokens that can be asked for.
const TOP_LOGPROBS_MAX: u32 = 20;

/// Checks the whole plan against the sequences that exist.
pub(crate) fn validate(plan: &StepPlan, sequences: &HashMap<u64, Sequence>, limits: Limits) -> Result<(), StepError> {
    let dropped: HashSet<u64> = plan.dropped.iter().copied().collect();
    let mut starts = HashMap::with_capacity(plan.starts.len());
    for start in &plan.starts {
        let id = start.sequence_id;
        let exists = sequences.contains_key(&id) && !dropped.contains(&id);
        if exists || starts.insert(id, start).is_some() {
            return Err(StepError::SequenceExists { sequence_id: id });
        }
        check_start(start, limits)?;
    }
    let mut sliced = HashSet::with_capacity(plan.slices.len());
    let mut tokens = 0;
    let mut written = Vec::new();
    for slice in &plan.slices {
        let sequence_id = slice.sequence_id;
        if !sliced.insert(sequence_id) {
            return Err(StepError::RepeatedSlice { sequence_id });
        }
        let view = match (starts.get(&sequence_id), sequences.get(&sequence_id)) {
            (Some(start), _) => View::started(start),
            (None, Some(sequence)) if !dropped.contains(&sequence_id) => View::existing(sequence),
            _ => return Err(StepError::UnknownSequence { sequence_id }),
        };
        if view.stopped {
            continue;
        }
        check_slice(slice, &view, limits, &mut written)?;
        tokens += slice.token_count as usize;
    }
    if tokens > limits.step_token_max {
        return Err(StepError::TooManyTokens {
            tokens,
            step_token_max: limits.step_token_max,
        });
    }
    written.sort_unstable();
    match written.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(StepError::BlockWrittenTwice {
            block: pair[1].0,
            sequence_id: pair[1].1,
        }),
        None => Ok(()),
    }
}

/// A sequence as the plan leaves it before its slice.
struct View<'a> {
    prompt_token_count: u32,
    blocks: &'a [u32],
    next_position: Option<u32>,
    has_sampled: bool,
    stopped: bool,
}

impl<'a> View<'a> {
    fn started(start: &'a SequenceStart) -> Self {
        let (prompt_token_count, blocks) = (start.prompt_token_count, start.block_ids.as_slice());
        Self {
            prompt_token_count,
            blocks,
            next_position: None,
            has_sampled: false,
            stopped: false,
        }
    }

    fn existing(sequence: &'a Sequence) -> Self {
        Self {
            prompt_token_count: sequence.prompt_token_count,
            blocks: &sequence.blocks,
            next_position: sequence.next_position,
            has_sampled: sequence.sampled.is_some() || sequence.chosen.is_some(),
            stopped: sequence.stopped || sequence.ending,
        }
    }
}

fn check_slice(slice: &Slice, view: &View<'_>, limits: Limits, written: &mut Vec<(u32, u64)>) -> Result<(), StepError> {
    let sequence_id = slice.sequence_id;
    let Slice {
        start_position,
        token_count,
        ..
    } = *slice;
    if token_count == 0 {
        return Err(StepError::EmptySlice { sequence_id });
    }
    let is_gap = match view.next_position {
        // What lies between came from elsewhere: the caller vouches for it, as for what is before the first slice.
        Some(expected) => {
            start_position != expected && !(expected < start_position && start_position < view.prompt_token_count)
        }
        // Sampling reads the output: none of it may lie before the first slice.
        None => start_position > view.prompt_token_count,
    };
    if is_gap {
        return Err(StepError::PositionGap {
            sequence_id,
            expected: view.next_position.unwrap_or(view.prompt_token_count),
            found: start_position,
        });
    }
    let token_ids = slice.token_ids.len();
    if token_ids != token_count as usize && !(token_ids == 0 && token_count == 1) {
        return Err(StepError::TokenCountMismatch {
            sequence_id,
            token_ids,
            token_count,
        });
    }
    if token_ids == 0 && !view.has_sampled {
        return Err(StepError::NoSampledToken {
            sequence_id,
            position: start_position,
        });
    }
    if let Some(token_id) = slice
        .token_ids
        .iter()
        .copied()
        .find(|id| *id as usize >= limits.vocab_size)
    {
        return Err(StepError::UnknownToken {
            sequence_id,
            token_id,
            vocab_size: limits.vocab_size,
        });
    }
    let last_position = u64::from(start_position) + u64::from(token_count) - 1;
    if last_position >= limits.context_length as u64 {
        return Err(StepError::ContextExceeded {
            sequence_id,
            last_position,
            context_length: limits.context_length,
        });
    }
    let first_block = start_position as usize / limits.block_size;
    let last_block = last_position as usize / limits.block_size;
    let table = || view.blocks.iter().chain(&slice.appended_block_ids).copied();
    let blocks = table().count();
    if last_block >= blocks {
        return Err(StepError::MissingBlocks {
            sequence_id,
            blocks,
            block_size: limits.block_size,
            last_position,
        });
    }
    if let Some(block) = table().find(|block| *block >= limits.block_count) {
        return Err(StepError::UnknownBlock {
            sequence_id,
            block,
            block_count: limits.block_count,
        });
    }
    written.extend(
        table()
            .take(last_block + 1)
            .skip(first_block)
            .map(|block| (block, sequence_id)),
    );
    let prompt_token_count = view.prompt_token_count;
    if slice.sample && last_position + 1 < u64::from(prompt_token_count) {
        let last_position = last_position as u32; // Below the context length.
        return Err(StepError::SampleInsidePrompt {
            sequence_id,
            last_position,
            prompt_token_count,
        });
    }
    Ok(())
}

fn check_start(start: &SequenceStart, limits: Limits) -> Result<(), StepError> {
    let sequence_id = start.sequence_id;
    let SamplingParams {
        temperature,
        top_p,
        max_tokens,
        top_logprobs,
        min_p,
        typical_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        ..
    } = start.sampling;
    let invalid = |field, value: String, remedy: String| StepError::InvalidStart {
        sequence_id,
        field,
        value,
        remedy,
    };
    let prompt = start.prompt_token_count;
    if prompt == 0 || prompt as usize > limits.context_length {
        return Err(invalid(
            "prompt_token_count",
            prompt.to_string(),
            format!("use 1 to {}", limits.context_length),
        ));
    }
    // Written so that NaN fails too.
    if !(0.0..=2.0).contains(&temperature) {
        return Err(invalid(
            "temperature",
            temperature.to_string(),
            "use 0 (greedy) to 2".into(),
        ));
    }
    let shares = [("top_p", top_p), ("min_p", min_p), ("typical_p", typical_p)];
    if let Some((field, value)) = shares.into_iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
        return Err(invalid(field, value.to_string(), "use 0 to 1".into()));
    }
    if !(0.0..=2.0).contains(&repetition_penalty) {
        return Err(invalid(
            "repetition_penalty",
            repetition_penalty.to_string(),
            "use more than 0, at most 2, or 0 for none".into(),
        ));
    }
    let penalties = [
        ("presence_penalty", presence_penalty),
        ("frequency_penalty", frequency_penalty),
    ];
    if let Some((field, value)) = penalties.into_iter().find(|(_, value)| !(-2.0..=2.0).contains(value)) {
        return Err(invalid(field, value.to_string(), "use -2 to 2".into()));
    }
    if let Some((token, bias)) = start.sampling.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
        let remedy = "use a finite number".into();
        return Err(invalid("logit_bias", format!("{bias} for token {token}"), remedy));
    }
    if start.sampling.bad_words.iter().any(Vec::is_empty) {
        return Err(invalid(
            "bad_words",
            "an empty word".into(),
            "give at least one token".into(),
        ));
    }
    let ids = start.prompt_token_ids.len();
    if ids != prompt as usize && (ids != 0 || start.sampling.needs_prompt()) {
        let remedy =
            format!("give the prompt's {prompt} tokens: repetition_penalty, bad_words and prompt_logprobs need them");
        return Err(invalid("prompt_token_ids", format!("{ids} tokens"), remedy));
    }
    if let Some(token) = start
        .prompt_token_ids
        .iter()
        .find(|id| **id as usize >= limits.vocab_size)
    {
        let remedy = format!("use ids below {}", limits.vocab_size);
        return Err(invalid("prompt_token_ids", token.to_string(), remedy));
    }
    if start.sampling.constraint.is_some() && start.sampling.stop_token_ids.is_empty() {
        let remedy = "give a stop token: a text under a constraint ends with one".into();
        return Err(invalid("stop_token_ids", "empty".into(), remedy));
    }
    if max_tokens == 0 {
        return Err(invalid("max_tokens", "0".into(), "use at least 1".into()));
    }
    let asked = [
        ("top_logprobs", top_logprobs),
        ("prompt_logprobs", start.sampling.prompt_logprobs.unwrap_or(0)),
    ];
    if let Some((field, value)) = asked.into_iter().find(|(_, value)| *value > TOP_LOGPROBS_MAX) {
        return Err(invalid(
            field,
            value.to_string(),
            format!("use at most {TOP_LOGPROBS_MAX}"),
        ));
    }
    Ok(())
}
