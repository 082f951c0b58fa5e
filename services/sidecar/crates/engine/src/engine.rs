//! The engine: sequences, steps, sampling. The numbers come from a [`Backend`].

use crate::backend::Backend;
use crate::bench::WeightMacs;
use crate::cpu_backend::CpuBackend;
use crate::error::{EngineError, StepError};
use crate::layout::KvLayout;
use crate::plan::{StepOutput, StepPlan};
use crate::sequence::Sequence;
use crate::validate::Limits;
use crate::weights::Weights;
use kvasir_grammar::Grammars;
use kvasir_kernels::{AlignedF32, Cpu, KvDtype, KvShape, KvShards};
use kvasir_model::ModelConfig;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

mod blocks_used;
mod flight;
mod guides;
mod passes;
mod probe;
mod steps;
pub use blocks_used::BlocksUsed;
use flight::Flight;

/// How a model's matrices lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightFormat {
    /// As the file has them, quantised ones too.
    #[default]
    Stored,
    /// Expanded to f32: exact sums over them, at several times the memory and the reading.
    F32,
    /// Rounded to bf16 and multiplied with activations rounded to bf16, summed in f32: what PyTorch does with a bf16 model. On processors with
    /// AVX-512 BF16 twice as fast as f32 where arithmetic is what counts, in prefill; logits move by some hundredths.
    Bf16,
    /// Rounded to GGUF's Q8_0: one scale for 32 weights. A matrix whose rows are no multiple of 32 stays as stored.
    Q8_0,
}

/// How to run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Bytes of the KV pool; the blocks that fit are made.
    pub kv_bytes: u64,
    /// Tokens per block: 16, 32 or 64.
    pub block_size: usize,
    /// Element type of the pool.
    pub kv_dtype: KvDtype,
    /// Tensor-parallel shards: each has its part of the query and KV heads, and memory of its own for them. A divisor of the KV heads.
    pub shard_count: usize,
    /// Compute threads, the caller of `step` included. More than there are cores makes every step slower.
    pub threads: usize,
    /// Most tokens that one step may have.
    pub step_token_max: usize,
    /// How matrices are kept; for [`Engine::load`] only.
    pub weights: WeightFormat,
}

/// Hears of `(sequence, end of its tokens)` pairs and the layers in which their KV is in place.
pub type StoredWatch<'a> = dyn FnMut(&[(u64, u32)], usize) + 'a;

/// Runs steps over a model's weights and a paged KV pool.
///
/// Logits of a row depend on the row's tokens only: not on the rest of the batch, on how the prompt was cut into slices, on block size,
/// shards or threads. A generated token depends on its logits and (seed, index).
pub struct Engine {
    cpu: Arc<Cpu>,
    backend: Box<dyn Backend>,
    config: ModelConfig,
    layout: KvLayout,
    limits: Limits,
    sequences: HashMap<u64, Sequence>,
    logits: AlignedF32,
    grammars: Option<Arc<Grammars>>,
    /// Steps that have begun and not ended: two at most.
    flights: VecDeque<Flight>,
    /// Steps begun so far.
    begun: u64,
    /// Sequences started so far.
    started: u64,
    /// When the last step ended.
    ended: Option<Instant>,
}

impl Engine {
    /// An engine over weights that are already packed; `revision` names them, see [`KvLayout::model_revision`].
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn from_weights(
        config: ModelConfig,
        revision: String,
        weights: Weights,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let cpu = Cpu::new(options.threads).map_err(EngineError::Threads)?;
        Self::on_cpu(Arc::new(cpu), config, revision, weights, options)
    }

    /// The same on a given CPU device, whose threads count instead of the option's.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn on_cpu(
        cpu: Arc<Cpu>,
        config: ModelConfig,
        revision: String,
        weights: Weights,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let shape = KvShape {
            layer_count: config.layer_count,
            kv_head_count: config.kv_head_count,
            head_size: config.head_size,
            block_size: options.block_size,
            dtype: options.kv_dtype,
        };
        let pool = Arc::new(KvShards::new(shape, options.shard_count, options.kv_bytes)?);
        let backend = Box::new(CpuBackend::new(Arc::clone(&cpu), config.clone(), weights, pool)?);
        Self::with_backend(cpu, backend, config, revision, options)
    }

    /// An engine over any device, which has weights and pool already: of the options only `step_token_max` and `weights` are read. `cpu` samples.
    ///
    /// # Errors
    /// [`EngineError::Option`] for steps of no tokens.
    pub fn with_backend(
        cpu: Arc<Cpu>,
        backend: Box<dyn Backend>,
        config: ModelConfig,
        revision: String,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        if options.step_token_max == 0 {
            return Err(EngineError::Option {
                option: "step_token_max",
                value: 0,
                remedy: "use at least 1",
            });
        }
        let pool = backend.pool();
        let shape = *pool.shape();
        let layout = KvLayout {
            model_revision: revision,
            dtype: shape.dtype,
            block_size: shape.block_size,
            shard_count: pool.shards().len(),
            layer_count: shape.layer_count,
            kv_head_count: shape.kv_head_count,
            head_size: shape.head_size,
            rope: config.rope.describe(),
            fingerprint: [0; 16],
            exact_fingerprint: [0; 16],
        };
        let limits = Limits {
            block_size: shape.block_size,
            block_count: pool.block_count(),
            context_length: config.context_length,
            vocab_size: config.vocab_size,
            step_token_max: options.step_token_max,
        };
        let arithmetic = backend.arithmetic();
        let layout = layout
            .with_fingerprint()
            .with_exact_fingerprint(options.weights, arithmetic);
        Ok(Self {
            cpu,
            backend,
            config,
            layout,
            limits,
            sequences: HashMap::new(),
            logits: AlignedF32::default(),
            grammars: None,
            flights: VecDeque::new(),
            begun: 0,
            started: 0,
            ended: None,
        })
    }

    /// KV memory by shards, for transfers.
    pub fn pool(&self) -> Arc<KvShards> {
        Arc::clone(self.backend.pool())
    }

    /// How KV lies in it.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Sizes of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Sequences known.
    pub fn sequence_count(&self) -> usize {
        self.sequences.len()
    }

    /// Device, for people.
    pub fn description(&self) -> String {
        self.backend.description()
    }

    /// Bytes of weights that a decode step reads, whatever its batch.
    pub fn weight_bytes_per_step(&self) -> usize {
        self.backend.weight_bytes_per_step()
    }

    /// Multiply-adds of one row: with the layers' weights, with the head's.
    pub fn weight_macs(&self) -> (WeightMacs, WeightMacs) {
        self.backend.weight_macs()
    }

    pub(crate) fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Forgets all sequences, and the steps that have begun.
    pub fn reset(&mut self) {
        while !self.flights.is_empty() {
            // The device may still write to what the caller thinks is free.
            let _ = self.finish(&mut |_, _| {});
        }
        self.sequences.clear();
    }

    /// Runs one step: forgets, starts, computes every slice in shared passes over the weights, samples.
    ///
    /// # Errors
    /// See [`StepError`]; the plan is checked as a whole first, and a refused step changes nothing.
    pub fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, StepError> {
        self.step_watched(plan, &mut |_, _| {})
    }

    /// The same, and tells while it runs which KV has come to be in place: whenever the tokens of some slices are stored in one more layer,
    /// `watch` gets each of these sequences with the end of its tokens, and the number of layers, counted from the first.
    ///
    /// # Errors
    /// As [`Engine::step`]; what was told before an internal error is in place.
    pub fn step_watched(&mut self, plan: &StepPlan, watch: &mut StoredWatch<'_>) -> Result<StepOutput, StepError> {
        self.begin(plan, watch)?;
        self.finish(watch)
    }
}

fn lost() -> StepError {
    StepError::Internal("a sequence changed while its step ran".into())
}
