//! What is kept of a step between its beginning and its end.

use crate::plan::{PromptLogprob, SampledToken, SliceResult};
use crate::reading::Read;
use std::time::Instant;

/// A step that has begun.
pub(super) struct Flight {
    /// Counts steps.
    pub(super) number: u64,
    pub(super) began: Instant,
    /// One for each slice of the plan.
    pub(super) results: Vec<SliceResult>,
    /// Those that are computed.
    pub(super) slices: Vec<FlightSlice>,
    /// The pass that runs.
    pub(super) pass: FlightPass,
    /// Passes, that one included.
    pub(super) pass_count: usize,
}

/// A slice that is computed.
pub(super) struct FlightSlice {
    /// Of the plan.
    pub(super) index: usize,
    pub(super) sequence_id: u64,
    /// One past its last position.
    pub(super) end: u32,
    pub(super) prompt_tokens: u32,
    pub(super) decode_tokens: u32,
    pub(super) token: Option<SampledToken>,
    pub(super) prompt_logprobs: Vec<PromptLogprob>,
    /// The sequence's constraint cannot be followed beyond this token.
    pub(super) is_dead: bool,
    /// The step before was the sequence's last: this one's rows mean nothing.
    pub(super) is_void: bool,
}

/// A pass over the weights.
#[derive(Default)]
pub(super) struct FlightPass {
    /// Ends of the sequences' tokens in it.
    pub(super) ends: Vec<(u64, u32)>,
    /// What is read from its rows of logits.
    pub(super) wanted: Vec<Wanted>,
    /// Whether the device was told so.
    pub(super) is_read: bool,
}

/// What is read from one row of logits.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// In the flight's slices.
    pub(super) slot: usize,
    pub(super) purpose: Purpose,
}

#[derive(Clone, Copy)]
pub(super) enum Purpose {
    /// The token with this index among the generated ones.
    Sample(u64),
    /// How likely this token of the prompt was, with so many of the most likely ones.
    Prompt(u32, u32),
}

impl Flight {
    /// Takes in what the pass came to.
    pub(super) fn take(&mut self, reads: Vec<Read>) {
        for (wanted, read) in self.pass.wanted.iter().zip(reads) {
            let slice = &mut self.slices[wanted.slot];
            match read {
                Read::Token(token) => slice.token = Some(token),
                Read::Prompt(logprob) => slice.prompt_logprobs.push(logprob),
                Read::Nothing => {}
            }
        }
    }

    /// Whether a sequence is computed in it.
    pub(super) fn has(&self, sequence_id: u64) -> bool {
        self.slices.iter().any(|slice| slice.sequence_id == sequence_id)
    }
}
