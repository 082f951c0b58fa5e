//! What the engine remembers of a sequence.

use crate::plan::{SamplingParams, SequenceStart};

/// A sequence between steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sequence {
    pub(crate) prompt_token_count: u32,
    pub(crate) sampling: SamplingParams,
    pub(crate) blocks: Vec<u32>,
    /// Position of the next token; unknown before the first slice, whose start the caller vouches for.
    pub(crate) next_position: Option<u32>,
    /// The token for `next_position`, if the last slice sampled one.
    pub(crate) sampled: Option<u32>,
    pub(crate) stopped: bool,
}

impl Sequence {
    pub(crate) fn new(start: &SequenceStart) -> Self {
        Self {
            prompt_token_count: start.prompt_token_count,
            sampling: start.sampling.clone(),
            blocks: start.block_ids.clone(),
            next_position: None,
            sampled: None,
            stopped: false,
        }
    }

    /// Whether the token sampled after `end` positions, with this index among the generated ones, is the last.
    pub(crate) fn ends_with(&self, token: u32, index: u32, end: u32, context_length: usize) -> bool {
        self.sampling.stop_token_ids.contains(&token)
            || index + 1 >= self.sampling.max_tokens
            || end as usize >= context_length
    }
}
