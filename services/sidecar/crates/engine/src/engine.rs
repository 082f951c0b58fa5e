//! The engine: sequences, steps, sampling. The numbers come from a [`Backend`].

use crate::backend::Backend;
use crate::bench::WeightMacs;
use crate::cpu_backend::CpuBackend;
use crate::error::{EngineError, StepError};
use crate::layout::KvLayout;
use crate::plan::{Slice, SliceOutcome, SliceResult, StepOutput, StepPlan};
use crate::sequence::Sequence;
use crate::validate::{Limits, validate};
use crate::weights::Weights;
use kvasir_grammar::Grammars;
use kvasir_kernels::{AlignedF32, Cpu, KvDtype, KvShape, KvShards};
use kvasir_model::ModelConfig;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

mod compute;
mod guides;
mod probe;
use compute::Computed;

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
        let layout = layout.with_fingerprint().with_exact_fingerprint(options.weights);
        Ok(Self {
            cpu,
            backend,
            config,
            layout,
            limits,
            sequences: HashMap::new(),
            logits: AlignedF32::default(),
            grammars: None,
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

    /// Forgets all sequences.
    pub fn reset(&mut self) {
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
        validate(plan, &self.sequences, self.limits)?;
        for (index, placement) in plan.placements.iter().enumerate() {
            let checked = placement.relocation().check(self.backend.pool());
            checked.map_err(|source| StepError::Placement { index, source })?;
        }
        let mut guides = self.guides(plan)?;
        let started = Instant::now();
        for placement in &plan.placements {
            self.backend.place(placement.relocation())?;
        }
        for id in &plan.dropped {
            self.sequences.remove(id);
        }
        for start in &plan.starts {
            self.sequences.insert(
                start.sequence_id,
                Sequence::new(start, guides.remove(&start.sequence_id)),
            );
        }
        let mut output = StepOutput::default();
        let mut work = Vec::with_capacity(plan.slices.len());
        for (index, slice) in plan.slices.iter().enumerate() {
            let sequence = known(&mut self.sequences, slice.sequence_id)?;
            let mut outcome = SliceOutcome::Skipped;
            if !sequence.stopped {
                outcome = SliceOutcome::Computed;
                sequence.blocks.extend_from_slice(&slice.appended_block_ids);
                for (offset, token) in slice.token_ids.iter().enumerate() {
                    sequence.push(slice.start_position as usize + offset, *token);
                }
                if slice.sample {
                    sequence.prepare_mask();
                }
                let prompt = slice
                    .token_count
                    .min(sequence.prompt_token_count.saturating_sub(slice.start_position));
                output.prompt_tokens += u64::from(prompt);
                output.decode_tokens += u64::from(slice.token_count - prompt);
                work.push(SliceWork {
                    index,
                    slice,
                    sampled: sequence.sampled,
                });
            }
            output.results.push(SliceResult {
                sequence_id: slice.sequence_id,
                outcome,
                token: None,
            });
        }
        for Computed {
            index,
            token,
            prompt_logprobs,
            dead,
        } in self.compute(&work, watch)?
        {
            let slice = &plan.slices[index];
            let sequence = known(&mut self.sequences, slice.sequence_id)?;
            let end = slice.start_position + slice.token_count;
            sequence.next_position = Some(end);
            sequence.sampled = token.as_ref().map(|token| token.token_id);
            sequence.prompt_logprobs.extend(prompt_logprobs);
            if let Some(mut token) = token {
                token.prompt_logprobs = std::mem::take(&mut sequence.prompt_logprobs);
                let generated = end - sequence.prompt_token_count;
                sequence.stopped =
                    dead || sequence.ends_with(token.token_id, generated, end, self.limits.context_length);
                if !sequence.stopped {
                    sequence.push(end as usize, token.token_id);
                    sequence.prepare_mask();
                }
                let result = &mut output.results[index];
                result.outcome = if sequence.stopped {
                    SliceOutcome::Stopped
                } else {
                    SliceOutcome::Sampled
                };
                result.token = Some(token);
            }
        }
        output.device_nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(output)
    }
}

#[derive(Clone, Copy)]
struct SliceWork<'a> {
    index: usize,
    slice: &'a Slice,
    /// The sequence's last token, for a slice without ids.
    sampled: Option<u32>,
}

fn known(sequences: &mut HashMap<u64, Sequence>, sequence_id: u64) -> Result<&mut Sequence, StepError> {
    sequences
        .get_mut(&sequence_id)
        .ok_or(StepError::UnknownSequence { sequence_id })
}

fn lost() -> StepError {
    StepError::Internal("a sequence changed while its step ran".into())
}
