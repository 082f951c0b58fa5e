//! The seam between the engine, which keeps the sequences, and a device, which multiplies.

use crate::bench::WeightMacs;
use crate::error::StepError;
use kvasir_kernels::{AlignedF32, KvShards, Relocation, Span};
use std::sync::Arc;

/// A device with the weights and the KV pool of one model.
pub trait Backend: Send {
    /// Computes rows and stores their KV. `tokens` holds the ids of all rows, through the spans in their order; `logit_rows` names the rows
    /// (ascending) whose logits are wanted; `logits` becomes `[logit_rows, vocab]`. `stored(n)` is called whenever the rows' KV has come to be
    /// in place in the first `n` layers, for all of them before the call returns; a device that cannot tell before says it once.
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

    /// Copies KV to another place of the pool, keys turned to their new positions. The run was checked.
    ///
    /// # Errors
    /// [`StepError::Internal`] only.
    fn place(&mut self, run: Relocation<'_>) -> Result<(), StepError>;

    /// Largest number of rows that one `forward` should get.
    fn rows_max(&self) -> usize;

    /// KV memory, by shards.
    fn pool(&self) -> &Arc<KvShards>;

    /// For people: e.g. `cpu avx512-vnni 2 threads`.
    fn description(&self) -> String;

    /// Bytes of weights that a decode step reads.
    fn weight_bytes_per_step(&self) -> usize;

    /// Multiply-adds of one row: with the layers' weights, with the head's.
    fn weight_macs(&self) -> (WeightMacs, WeightMacs);
}
