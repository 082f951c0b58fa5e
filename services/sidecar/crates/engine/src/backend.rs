//! The seam between the engine, which keeps the sequences, and a device, which multiplies.

use crate::bench::WeightMacs;
use crate::error::StepError;
use crate::reading::{Read, Reading};
use kvasir_kernels::{AlignedF32, KvShards, Relocation, Span};
use std::sync::Arc;

/// Where a row's token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// This one.
    Known(u32),
    /// What reading `i` of the pass before chose, which the caller need not know yet.
    Chosen(usize),
}

/// A device with the weights and the KV pool of one model.
///
/// A pass is a [`Backend::launch`], one [`Backend::read`] and one [`Backend::collect`], in this order. Where [`Backend::overlaps`], the next pass may
/// be launched between the second and the third, so that the device has work while its last results are looked at:
///
/// ```text
/// launch 1 · read 1 · launch 2 · collect 1 · read 2 · launch 3 · collect 2 · read 3 ...
/// ```
pub trait Backend: Send {
    /// Computes rows, stores their KV and hands logits to the caller. `tokens` holds the ids of all rows, through the spans in their order;
    /// `logit_rows` names the rows (ascending) whose logits are wanted; `logits` becomes `[logit_rows, vocab]`. `stored(n)` is called whenever
    /// the rows' KV has come to be in place in the first `n` layers, for all of them before the call returns; a device that cannot tell
    /// before says it once.
    ///
    /// # Errors
    /// [`StepError::Internal`] only: the engine has validated everything that a caller can get wrong.
    fn forward(
        &mut self,
        tokens: &[u32],
        spans: Vec<Span<'_>>,
        logit_rows: &[usize],
        logits: &mut AlignedF32,
        stored: &mut dyn FnMut(usize),
    ) -> Result<(), StepError>;

    /// Starts a pass whose logits stay where they are. `stored` as in [`Backend::forward`], as far as it is known before [`Backend::collect`].
    ///
    /// # Errors
    /// [`StepError::Internal`] only.
    fn launch(
        &mut self,
        tokens: &[TokenSource],
        spans: Vec<Span<'_>>,
        logit_rows: &[usize],
        stored: &mut dyn FnMut(usize),
    ) -> Result<(), StepError>;

    /// Starts reading the logits of the pass launched last, one reading for each of its rows of logits.
    ///
    /// # Errors
    /// [`StepError::Internal`] only.
    fn read(&mut self, readings: &[Reading<'_>]) -> Result<(), StepError>;

    /// Waits for the oldest pass that was read; one answer for each reading. All its KV is in place, and `stored` has said so.
    ///
    /// # Errors
    /// [`StepError::Internal`] only.
    fn collect(&mut self, stored: &mut dyn FnMut(usize)) -> Result<Vec<Read>, StepError>;

    /// Whether a pass may be launched before the one before it is collected.
    fn overlaps(&self) -> bool {
        false
    }

    /// Whether [`Backend::collect`] would not wait.
    fn is_ready(&self) -> bool {
        true
    }

    /// Copies KV to another place of the pool, keys turned to their new positions. The run was checked.
    ///
    /// # Errors
    /// [`StepError::Internal`] only.
    fn place(&mut self, run: Relocation<'_>) -> Result<(), StepError>;

    /// Largest number of rows that one pass should get.
    fn rows_max(&self) -> usize;

    /// KV memory, by shards.
    fn pool(&self) -> &Arc<KvShards>;

    /// What decides the bits of KV beside the model, where that is not the CPU's arithmetic over the weights as they are kept.
    fn arithmetic(&self) -> Option<&'static str> {
        None
    }

    /// For people: e.g. `cpu avx512-vnni 2 threads`.
    fn description(&self) -> String;

    /// Bytes of weights that a decode step reads.
    fn weight_bytes_per_step(&self) -> usize;

    /// Multiply-adds of one row: with the layers' weights, with the head's.
    fn weight_macs(&self) -> (WeightMacs, WeightMacs);
}
