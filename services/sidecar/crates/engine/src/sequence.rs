//! What the engine remembers of a sequence.

use crate::history::History;
use crate::plan::{PromptLogprob, SamplingParams, SequenceStart};
use kvasir_grammar::Guide;

/// A sequence between steps.
pub(crate) struct Sequence {
    /// Of all that this engine has had; ids of sequences come again.
    pub(crate) serial: u64,
    pub(crate) prompt_token_count: u32,
    pub(crate) sampling: SamplingParams,
    pub(crate) blocks: Vec<u32>,
    /// Position of the next token; unknown before the first slice, whose start the caller vouches for. Within the prompt the caller may skip
    /// what is in the pool already.
    pub(crate) next_position: Option<u32>,
    /// The token for `next_position`, if the last slice sampled one.
    pub(crate) sampled: Option<u32>,
    /// That token while the device alone knows it: number of the step, and which of its readings.
    pub(crate) chosen: Option<(u64, usize)>,
    pub(crate) stopped: bool,
    /// The step that samples its last token by length has begun.
    pub(crate) ending: bool,
    /// Kept only when sampling needs it.
    pub(crate) history: Option<History>,
    /// Its way through its constraint.
    pub(crate) guide: Option<Guide>,
    /// Of the prompt's tokens so far, until the first token takes them along.
    pub(crate) prompt_logprobs: Vec<PromptLogprob>,
}

impl Sequence {
    pub(crate) fn new(start: &SequenceStart, serial: u64, guide: Option<Guide>) -> Self {
        Self {
            serial,
            prompt_token_count: start.prompt_token_count,
            sampling: start.sampling.clone(),
            blocks: start.block_ids.clone(),
            next_position: None,
            sampled: None,
            chosen: None,
            stopped: false,
            ending: false,
            history: start
                .sampling
                .needs_history()
                .then(|| History::new(&start.prompt_token_ids, start.prompt_token_count as usize)),
            guide,
            prompt_logprobs: Vec::new(),
        }
    }

    /// Takes a token of prompt or output into account, where sampling looks back.
    pub(crate) fn push(&mut self, position: usize, token: u32) {
        if let Some(history) = &mut self.history {
            history.push(position, token);
        }
        if let Some(guide) = &mut self.guide {
            guide.push(position, token);
        }
    }

    /// Has the mask of the next token made while the device computes.
    pub(crate) fn prepare_mask(&mut self) {
        if let Some(guide) = &mut self.guide {
            guide.prepare();
        }
    }

    /// Whether the token sampled after `end` positions, with this index among the generated ones, is the last.
    pub(crate) fn ends_with(&self, token: u32, index: u32, end: u32, context_length: usize) -> bool {
        self.sampling.stop_token_ids.contains(&token) || self.is_at_end(index, end, context_length)
    }

    /// Whether it is the last, whatever it is.
    pub(crate) fn is_at_end(&self, index: u32, end: u32, context_length: usize) -> bool {
        index + 1 >= self.sampling.max_tokens || end as usize >= context_length
    }
}
