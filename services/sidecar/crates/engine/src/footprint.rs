//! How much memory a model will take, told before any of it is asked for.

use kvasir_kernels::WeightType;
use kvasir_model::{ModelConfig, ModelSource, TensorId};

use crate::cpu_backend::ROWS_MAX;
use crate::engine::EngineOptions;
use crate::error::EngineError;
use crate::load::kept_type;

/// Sequences whose logits one pass is counted with: batches beyond it are rare on a CPU, and each costs one row of the vocabulary.
const LOGIT_ROWS: usize = 64;

/// Bytes of memory by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Weights as they will be kept.
    pub weights: u64,
    /// What converting the largest matrix takes for a moment, beside the weights.
    pub conversion: u64,
    /// The KV pool when it is full.
    pub kv: u64,
    /// Activations of the largest pass and logits of 64 sequences.
    pub scratch: u64,
}

impl Footprint {
    /// Of a model under these options. Reads the files' tables only.
    ///
    /// # Errors
    /// [`EngineError::Load`] for a weight that is not there.
    pub fn of(source: &ModelSource, options: &EngineOptions) -> Result<Self, EngineError> {
        let (mut weights, mut conversion) = (0, 0);
        for id in TensorId::all(source.config()) {
            let (tensor_type, rows, cols) = source.stored_as(id)?;
            if rows == 1 {
                weights += 4 * cols as u64;
                continue;
            }
            let kept = kept_type(tensor_type, cols, options.weights);
            weights += bytes(kept, rows, cols);
            conversion = conversion.max(bytes(kept, rows, cols) + bytes(WeightType::F32, rows, cols));
        }
        Ok(Self {
            weights,
            conversion,
            kv: options.kv_bytes,
            scratch: scratch(source.config()),
        })
    }

    /// The most that is held at once: scratch and KV fill only after loading.
    pub fn peak(&self) -> u64 {
        self.weights
            .saturating_add(self.kv.saturating_add(self.scratch).max(self.conversion))
    }
}

fn bytes(weight_type: WeightType, rows: usize, cols: usize) -> u64 {
    weight_type.packed_bytes(rows, cols) as u64
}

fn scratch(config: &ModelConfig) -> u64 {
    let (queries, kv) = (
        config.head_count * config.head_size,
        config.kv_head_count * config.head_size,
    );
    let row = 2 * config.hidden_size + 3 * queries + 2 * kv + config.intermediate_size + config.rope.dim;
    // Quantised copies of a row take less than a third of it.
    let floats = ROWS_MAX * (row + row / 3) + LOGIT_ROWS * config.vocab_size;
    4 * floats as u64
}
