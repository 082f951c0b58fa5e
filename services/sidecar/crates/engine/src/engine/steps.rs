//! A step begins when its rows are launched, and ends when its tokens are known. On a device that computes by itself the next one begins between.

use super::flight::{Flight, FlightPass, FlightSlice, Purpose};
use super::passes::{SliceWork, read};
use super::{Engine, StoredWatch, lost};
use crate::backend::TokenSource;
use crate::error::StepError;
use crate::plan::{SliceOutcome, SliceResult, StepOutput, StepPlan};
use crate::sequence::Sequence;
use crate::validate::validate;
use std::collections::HashMap;
use std::time::Instant;

impl Engine {
    /// Whether a step may begin now: nothing is in flight, or one step whose outcome this one's rows do not depend on but by the tokens that the
    /// device has.
    pub fn can_begin(&self, plan: &StepPlan) -> bool {
        let Some(flight) = self.flights.front() else {
            return true;
        };
        let is_free = |id: &u64| !flight.has(*id);
        let rows: usize = plan.slices.iter().map(|slice| slice.token_count as usize).sum();
        let follows = plan.slices.iter().all(|slice| {
            // Explicit tokens after a sampled one would have to be put behind one that is not known yet.
            let sequence = self.sequences.get(&slice.sequence_id);
            slice.token_ids.is_empty() || sequence.is_none_or(|sequence| sequence.chosen.is_none())
        });
        self.flights.len() == 1
            && self.backend.overlaps()
            && flight.pass_count <= 1
            && plan.placements.is_empty()
            && plan.dropped.iter().all(is_free)
            && plan
                .starts
                .iter()
                .all(|start| start.sampling.prompt_logprobs.is_none() && is_free(&start.sequence_id))
            && rows <= self.pass_rows(plan.slices.iter().map(|slice| slice.sequence_id))
            && follows
    }

    /// Steps that have begun and not ended.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Whether [`Engine::finish`] would not wait.
    pub fn is_ready(&self) -> bool {
        self.backend.is_ready()
    }

    /// Begins a step, which [`Engine::finish`] ends; between the two another may begin where [`Engine::can_begin`]. `watch` as in
    /// [`Engine::step_watched`].
    ///
    /// # Errors
    /// As [`Engine::step`], which changes nothing then; [`StepError::Internal`] when this step must wait for one in flight.
    pub fn begin(&mut self, plan: &StepPlan, watch: &mut StoredWatch<'_>) -> Result<(), StepError> {
        if !self.can_begin(plan) {
            return Err(StepError::Internal("a step began before the one before ended".into()));
        }
        validate(plan, &self.sequences, self.limits)?;
        for (index, placement) in plan.placements.iter().enumerate() {
            let checked = placement.relocation().check(self.backend.pool());
            checked.map_err(|source| StepError::Placement { index, source })?;
        }
        let mut guides = self.guides(plan)?;
        let began = Instant::now();
        for placement in &plan.placements {
            self.backend.place(placement.relocation())?;
        }
        for id in &plan.dropped {
            self.sequences.remove(id);
        }
        for start in &plan.starts {
            self.started += 1;
            self.sequences.insert(
                start.sequence_id,
                Sequence::new(start, self.started, guides.remove(&start.sequence_id)),
            );
        }
        self.begun += 1;
        let mut flight = Flight {
            number: self.begun,
            began,
            results: Vec::with_capacity(plan.slices.len()),
            slices: Vec::with_capacity(plan.slices.len()),
            pass: FlightPass::default(),
            pass_count: 0,
        };
        let work = self.enter(plan, &mut flight)?;
        let ahead = !self.flights.is_empty();
        self.launch_passes(&work, &mut flight, watch)?;
        self.expect_tokens(&flight);
        if !ahead {
            read(&self.sequences, &mut *self.backend, &mut flight)?;
        }
        self.flights.push_back(flight);
        Ok(())
    }

    /// Ends the oldest step in flight.
    ///
    /// # Errors
    /// [`StepError::Internal`] only.
    pub fn finish(&mut self, watch: &mut StoredWatch<'_>) -> Result<StepOutput, StepError> {
        let mut flight = self
            .flights
            .pop_front()
            .ok_or_else(|| StepError::Internal("no step has begun".into()))?;
        self.collect_pass(&mut flight, watch)?;
        let output = self.settle(flight)?;
        if let Some(next) = self.flights.front_mut()
            && !next.pass.is_read
        {
            // What a token has just ended was begun without knowing that.
            for slice in &mut next.slices {
                slice.is_void = known(&mut self.sequences, slice.sequence_id)?.stopped;
            }
            read(&self.sequences, &mut *self.backend, next)?;
        }
        Ok(output)
    }

    /// Takes the plan's slices into sequences and flight.
    fn enter<'p>(&mut self, plan: &'p StepPlan, flight: &mut Flight) -> Result<Vec<SliceWork<'p>>, StepError> {
        let mut work = Vec::with_capacity(plan.slices.len());
        for (index, slice) in plan.slices.iter().enumerate() {
            let sequence = known(&mut self.sequences, slice.sequence_id)?;
            let mut outcome = SliceOutcome::Skipped;
            if !(sequence.stopped || sequence.ending) {
                outcome = SliceOutcome::Computed;
                sequence.blocks.extend_from_slice(&slice.appended_block_ids);
                for (offset, token) in slice.token_ids.iter().enumerate() {
                    sequence.push(slice.start_position as usize + offset, *token);
                }
                if slice.sample {
                    sequence.prepare_mask();
                }
                let end = slice.start_position + slice.token_count;
                let prompt = slice
                    .token_count
                    .min(sequence.prompt_token_count.saturating_sub(slice.start_position));
                let known = sequence.sampled.take().map(TokenSource::Known);
                let chosen = sequence.chosen.take().map(|(_, reading)| TokenSource::Chosen(reading));
                sequence.next_position = Some(end);
                work.push(SliceWork {
                    slice,
                    slot: flight.slices.len(),
                    before: known.or(chosen),
                });
                flight.slices.push(FlightSlice {
                    index,
                    sequence_id: slice.sequence_id,
                    end,
                    prompt_tokens: prompt,
                    decode_tokens: slice.token_count - prompt,
                    token: None,
                    prompt_logprobs: Vec::new(),
                    is_dead: false,
                    is_void: false,
                });
            }
            flight.results.push(SliceResult {
                sequence_id: slice.sequence_id,
                outcome,
                token: None,
            });
        }
        Ok(work)
    }

    /// Tokens that the pass in flight will choose are known to be coming, and so are the ends that no token decides.
    fn expect_tokens(&mut self, flight: &Flight) {
        for (reading, wanted) in flight.pass.wanted.iter().enumerate() {
            let slice = &flight.slices[wanted.slot];
            if let (Purpose::Sample(generated), Some(sequence)) =
                (wanted.purpose, self.sequences.get_mut(&slice.sequence_id))
            {
                sequence.chosen = Some((flight.number, reading));
                sequence.ending = sequence.is_at_end(generated as u32, slice.end, self.limits.context_length);
            }
        }
    }

    /// Tells the sequences what came of a step.
    fn settle(&mut self, flight: Flight) -> Result<StepOutput, StepError> {
        let mut output = StepOutput {
            results: flight.results,
            ..StepOutput::default()
        };
        for slice in flight.slices {
            let result = &mut output.results[slice.index];
            if slice.is_void {
                result.outcome = SliceOutcome::Skipped;
                continue;
            }
            output.prompt_tokens += u64::from(slice.prompt_tokens);
            output.decode_tokens += u64::from(slice.decode_tokens);
            let sequence = known(&mut self.sequences, slice.sequence_id)?;
            if sequence.chosen.is_some_and(|(number, _)| number == flight.number) {
                sequence.chosen = None;
                sequence.sampled = slice.token.as_ref().map(|token| token.token_id);
            } else if sequence.next_position == Some(slice.end) {
                sequence.sampled = slice.token.as_ref().map(|token| token.token_id);
            }
            sequence.prompt_logprobs.extend(slice.prompt_logprobs);
            if let Some(mut token) = slice.token {
                token.prompt_logprobs = std::mem::take(&mut sequence.prompt_logprobs);
                let generated = slice.end - sequence.prompt_token_count;
                sequence.stopped = slice.is_dead
                    || sequence.ends_with(token.token_id, generated, slice.end, self.limits.context_length);
                if !sequence.stopped {
                    sequence.push(slice.end as usize, token.token_id);
                    sequence.prepare_mask();
                }
                result.outcome = if sequence.stopped {
                    SliceOutcome::Stopped
                } else {
                    SliceOutcome::Sampled
                };
                result.token = Some(token);
            }
        }
        let now = Instant::now();
        let began = self.ended.map_or(flight.began, |ended| ended.max(flight.began));
        output.device_nanos = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX);
        self.ended = Some(now);
        Ok(output)
    }
}

fn known(sequences: &mut HashMap<u64, Sequence>, sequence_id: u64) -> Result<&mut Sequence, StepError> {
    sequences.get_mut(&sequence_id).ok_or_else(lost)
}
