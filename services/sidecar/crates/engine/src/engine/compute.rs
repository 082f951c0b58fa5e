//! One step's slices, in passes over the weights.

use super::{Engine, SliceWork, StoredWatch, lost};
use crate::error::StepError;
use crate::plan::{PromptLogprob, SampledToken};
use crate::sampling::{Past, SamplingScratch, prompt_logprob, sample};
use crate::sequence::Sequence;
use kvasir_grammar::{Guide, Mask};
use kvasir_kernels::Span;
use std::sync::Arc;

/// Rows of a pass in which prompts want their log-probabilities: each such row has logits of the whole vocabulary.
const LOGPROB_ROWS_MAX: usize = 64;

/// What a slice came to.
pub(super) struct Computed {
    /// Of the slice, in the plan.
    pub(super) index: usize,
    pub(super) token: Option<SampledToken>,
    pub(super) prompt_logprobs: Vec<PromptLogprob>,
    /// The sequence's constraint cannot be followed beyond this token.
    pub(super) dead: bool,
}

/// What is read from one row of logits.
struct Reading<'s> {
    row: usize,
    sequence: &'s Sequence,
    /// Position in `done`.
    slot: usize,
    purpose: Purpose,
}

enum Purpose {
    /// The token with this index among the generated ones.
    Sample(u64),
    /// How likely this token of the prompt was, with so many of the most likely ones.
    Prompt(u32, u32),
}

enum Read {
    Token(SampledToken),
    Prompt(PromptLogprob),
}

impl Engine {
    /// Computes slices in passes of at most the backend's rows; a pass may end inside a slice.
    pub(super) fn compute(
        &mut self,
        work: &[SliceWork<'_>],
        watch: &mut StoredWatch<'_>,
    ) -> Result<Vec<Computed>, StepError> {
        let rows_max = self.pass_rows(work);
        let mut done = Vec::with_capacity(work.len());
        let (mut next, mut offset) = (0, 0);
        while next < work.len() {
            let (mut tokens, mut spans, mut ends) = (Vec::new(), Vec::new(), Vec::new());
            let mut readings: Vec<Reading<'_>> = Vec::new();
            while next < work.len() && tokens.len() < rows_max {
                let SliceWork { index, slice, sampled } = work[next];
                let sequence = self.sequences.get(&slice.sequence_id).ok_or_else(lost)?;
                if offset == 0 {
                    done.push(Computed {
                        index,
                        token: None,
                        prompt_logprobs: Vec::new(),
                        dead: false,
                    });
                }
                let slot = done.len() - 1;
                let count = (slice.token_count as usize - offset).min(rows_max - tokens.len());
                let start_position = slice.start_position as usize + offset;
                spans.push(Span {
                    start_position,
                    token_count: count,
                    blocks: &sequence.blocks,
                });
                ends.push((slice.sequence_id, (start_position + count) as u32));
                let first_row = tokens.len();
                match slice.token_ids.get(offset..offset + count) {
                    Some(ids) => tokens.extend_from_slice(ids),
                    None => tokens.push(sampled.ok_or_else(lost)?),
                }
                if let (Some(top), Some(history)) = (sequence.sampling.prompt_logprobs, &sequence.history) {
                    readings.extend((0..count).filter_map(|i| {
                        let token = history.prompt_token(start_position + i + 1)?;
                        let purpose = Purpose::Prompt(token, top);
                        let row = first_row + i;
                        Some(Reading {
                            row,
                            sequence,
                            slot,
                            purpose,
                        })
                    }));
                }
                offset += count;
                if offset == slice.token_count as usize {
                    if slice.sample {
                        let row = tokens.len() - 1;
                        let generated = start_position + count - sequence.prompt_token_count as usize;
                        let purpose = Purpose::Sample(generated as u64);
                        readings.push(Reading {
                            row,
                            sequence,
                            slot,
                            purpose,
                        });
                    }
                    (next, offset) = (next + 1, 0);
                }
            }
            let rows: Vec<usize> = readings.iter().map(|reading| reading.row).collect();
            self.backend
                .forward(&tokens, spans, &rows, &mut self.logits, &mut |layers| {
                    watch(&ends, layers)
                })?;
            // Waits only for masks that took longer than the pass.
            let mask_of = |reading: &Reading<'_>| match reading.purpose {
                Purpose::Sample(_) => reading.sequence.guide.as_ref().and_then(Guide::mask),
                Purpose::Prompt(..) => None,
            };
            let masks: Vec<Option<Arc<Mask>>> = readings.iter().map(mask_of).collect();
            let mut reads: Vec<Option<Read>> = readings.iter().map(|_| None).collect();
            let (isa, vocab, logits) = (self.cpu.isa, self.limits.vocab_size, &self.logits);
            self.cpu.threads.for_each(&mut reads, |i, read| {
                let Reading { sequence, purpose, .. } = &readings[i];
                let row = &logits[i * vocab..(i + 1) * vocab];
                let scratch = &mut SamplingScratch::default();
                *read = Some(match *purpose {
                    Purpose::Sample(generated) => {
                        let past = Past {
                            history: sequence.history.as_ref(),
                            mask: masks[i].as_deref(),
                        };
                        Read::Token(sample(isa, row, &sequence.sampling, past, generated, scratch))
                    }
                    Purpose::Prompt(token, top) => Read::Prompt(prompt_logprob(isa, row, token, top, scratch)),
                });
            });
            for ((reading, read), mask) in readings.iter().zip(reads).zip(masks) {
                done[reading.slot].dead |= mask.is_some_and(|mask| mask.is_dead());
                match read {
                    Some(Read::Token(token)) => done[reading.slot].token = Some(token),
                    Some(Read::Prompt(logprob)) => done[reading.slot].prompt_logprobs.push(logprob),
                    None => return Err(lost()),
                }
            }
        }
        Ok(done)
    }

    fn pass_rows(&self, work: &[SliceWork<'_>]) -> usize {
        let wants_logprobs = |work: &SliceWork<'_>| {
            let sequence = self.sequences.get(&work.slice.sequence_id);
            sequence.is_some_and(|sequence| sequence.sampling.prompt_logprobs.is_some())
        };
        let rows_max = self.backend.rows_max();
        if work.iter().any(wants_logprobs) {
            rows_max.min(LOGPROB_ROWS_MAX)
        } else {
            rows_max
        }
    }
}
