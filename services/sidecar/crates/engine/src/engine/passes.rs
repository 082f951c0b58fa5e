//! One step's slices, in passes over the weights.

use super::flight::{Flight, FlightPass, Purpose, Wanted};
use super::{Engine, StoredWatch, lost};
use crate::backend::{Backend, TokenSource};
use crate::error::StepError;
use crate::plan::Slice;
use crate::reading::Reading;
use crate::sampling::Past;
use crate::sequence::Sequence;
use kvasir_grammar::{Guide, Mask};
use kvasir_kernels::Span;
use std::collections::HashMap;
use std::sync::Arc;

/// Rows of a pass in which prompts want their log-probabilities: each such row has logits of the whole vocabulary.
const LOGPROB_ROWS_MAX: usize = 64;

/// A slice, and where it stands in its flight.
#[derive(Clone, Copy)]
pub(super) struct SliceWork<'a> {
    pub(super) slice: &'a Slice,
    pub(super) slot: usize,
    /// The sequence's last token, for a slice without ids.
    pub(super) before: Option<TokenSource>,
}

impl Engine {
    /// Computes slices in passes of at most the backend's rows; a pass may end inside a slice. The last one runs on.
    pub(super) fn launch_passes(
        &mut self,
        work: &[SliceWork<'_>],
        flight: &mut Flight,
        watch: &mut StoredWatch<'_>,
    ) -> Result<(), StepError> {
        let rows_max = self.pass_rows(work.iter().map(|work| work.slice.sequence_id));
        let (mut next, mut offset) = (0, 0);
        while next < work.len() {
            let (mut tokens, mut spans) = (Vec::new(), Vec::new());
            let (mut rows, mut pass) = (Vec::new(), FlightPass::default());
            while next < work.len() && tokens.len() < rows_max {
                let SliceWork { slice, slot, before } = work[next];
                let sequence = self.sequences.get(&slice.sequence_id).ok_or_else(lost)?;
                let count = (slice.token_count as usize - offset).min(rows_max - tokens.len());
                let start_position = slice.start_position as usize + offset;
                spans.push(Span {
                    start_position,
                    token_count: count,
                    blocks: &sequence.blocks,
                });
                pass.ends.push((slice.sequence_id, (start_position + count) as u32));
                let first_row = tokens.len();
                match slice.token_ids.get(offset..offset + count) {
                    Some(ids) => tokens.extend(ids.iter().copied().map(TokenSource::Known)),
                    None => tokens.push(before.ok_or_else(lost)?),
                }
                let mut want = |row: usize, purpose: Purpose| {
                    rows.push(row);
                    pass.wanted.push(Wanted { slot, purpose });
                };
                if let (Some(top), Some(history)) = (sequence.sampling.prompt_logprobs, &sequence.history) {
                    for i in 0..count {
                        if let Some(token) = history.prompt_token(start_position + i + 1) {
                            want(first_row + i, Purpose::Prompt(token, top));
                        }
                    }
                }
                offset += count;
                if offset == slice.token_count as usize {
                    if slice.sample {
                        let generated = start_position + count - sequence.prompt_token_count as usize;
                        want(tokens.len() - 1, Purpose::Sample(generated as u64));
                    }
                    (next, offset) = (next + 1, 0);
                }
            }
            let ends = &pass.ends;
            self.backend
                .launch(&tokens, spans, &rows, &mut |layers| watch(ends, layers))?;
            flight.pass = pass;
            flight.pass_count += 1;
            if next < work.len() {
                read(&self.sequences, &mut *self.backend, flight)?;
                self.collect_pass(flight, watch)?;
            }
        }
        Ok(())
    }

    /// Waits for the pass that runs.
    pub(super) fn collect_pass(&mut self, flight: &mut Flight, watch: &mut StoredWatch<'_>) -> Result<(), StepError> {
        if flight.pass_count > 0 {
            let ends = &flight.pass.ends;
            let reads = self.backend.collect(&mut |layers| watch(ends, layers))?;
            flight.take(reads);
        }
        Ok(())
    }

    /// Rows of a pass over these sequences.
    pub(super) fn pass_rows(&self, mut sequence_ids: impl Iterator<Item = u64>) -> usize {
        let wants_logprobs = |id: u64| {
            let sequence = self.sequences.get(&id);
            sequence.is_some_and(|sequence| sequence.sampling.prompt_logprobs.is_some())
        };
        let rows_max = self.backend.rows_max();
        if sequence_ids.any(wants_logprobs) {
            rows_max.min(LOGPROB_ROWS_MAX)
        } else {
            rows_max
        }
    }
}

/// Has the logits of the pass that runs read. All that came before is known by now: penalties and constraints look back on it.
pub(super) fn read(
    sequences: &HashMap<u64, Sequence>,
    backend: &mut dyn Backend,
    flight: &mut Flight,
) -> Result<(), StepError> {
    if flight.pass_count == 0 {
        return Ok(());
    }
    let (slices, pass) = (&mut flight.slices, &mut flight.pass);
    let sequence_of =
        |wanted: &Wanted| (!slices[wanted.slot].is_void).then(|| sequences.get(&slices[wanted.slot].sequence_id));
    // Waits only for masks that took longer than the pass.
    let mask_of = |wanted: &Wanted| match wanted.purpose {
        Purpose::Sample(_) => sequence_of(wanted)??.guide.as_ref().and_then(Guide::mask),
        Purpose::Prompt(..) => None,
    };
    let masks: Vec<Option<Arc<Mask>>> = pass.wanted.iter().map(mask_of).collect();
    let mut readings = Vec::with_capacity(masks.len());
    for (wanted, mask) in pass.wanted.iter().zip(&masks) {
        let Some(sequence) = sequence_of(wanted) else {
            readings.push(Reading::Nothing);
            continue;
        };
        let sequence = sequence.ok_or_else(lost)?;
        readings.push(match wanted.purpose {
            Purpose::Sample(index) => Reading::Sample {
                params: &sequence.sampling,
                past: Past {
                    history: sequence.history.as_ref(),
                    sequence: sequence.serial,
                    mask: mask.as_deref(),
                },
                index,
            },
            Purpose::Prompt(token, top) => Reading::Prompt { token, top },
        });
    }
    backend.read(&readings)?;
    pass.is_read = true;
    for (wanted, mask) in pass.wanted.iter().zip(&masks) {
        slices[wanted.slot].is_dead |= mask.as_ref().is_some_and(|mask| mask.is_dead());
    }
    Ok(())
}
