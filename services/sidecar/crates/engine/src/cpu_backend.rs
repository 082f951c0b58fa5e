//! The transformer on the CPU.

use crate::backend::{Backend, TokenSource};
use crate::bench::WeightMacs;
use crate::error::{EngineError, StepError};
use crate::reading::{Read, Reading, read_logits};
use crate::weights::{LayerWeights, Weights};
use kvasir_kernels::{
    Activations, AlignedF32, Batch, Cpu, Gate, KernelError, KvShards, PackedMatrix, Product, Projections, Relocation,
    RopeTable, Span, add_bias, attention, gated_linear, gather_rows, linear, place, rmsnorm, rotate_and_store,
};
use kvasir_model::{Activation, ModelConfig};
use std::sync::Arc;

/// Rows of one pass. More amortise reading the weights better; fewer keep activations in the caches: at 512 the widest buffer of a small
/// model is 3 MB.
pub(crate) const ROWS_MAX: usize = 512;

/// Weights, pool and scratch memory of one model.
pub struct CpuBackend {
    cpu: Arc<Cpu>,
    config: ModelConfig,
    inverse_frequencies: Vec<f32>,
    weights: Weights,
    pool: Arc<KvShards>,
    scratch: Scratch,
    /// Of the pass launched last.
    logits: AlignedF32,
    reads: Vec<Read>,
}

/// Buffers of a pass, kept between passes; `[rows, …]` each.
#[derive(Default)]
struct Scratch {
    /// Residual stream.
    hidden: AlignedF32,
    /// Normed rows; also the gathered rows for the head.
    normed: AlignedF32,
    query: AlignedF32,
    key: AlignedF32,
    value: AlignedF32,
    attended: AlignedF32,
    /// Queries or keys while they are normed by head.
    normed_heads: AlignedF32,
    gated: AlignedF32,
    activations: Activations,
    rope: RopeTable,
}

impl CpuBackend {
    /// Takes the weights and makes a pool of the given layout.
    ///
    /// # Errors
    /// [`EngineError::Configuration`], [`EngineError::Shape`].
    pub fn new(cpu: Arc<Cpu>, config: ModelConfig, weights: Weights, pool: Arc<KvShards>) -> Result<Self, EngineError> {
        weights.check(&config)?;
        let inverse_frequencies = config.rope.inverse_frequencies();
        Ok(Self {
            cpu,
            config,
            inverse_frequencies,
            weights,
            pool,
            scratch: Scratch::default(),
            logits: AlignedF32::default(),
            reads: Vec::new(),
        })
    }

    fn run_layers(
        &mut self,
        tokens: &[u32],
        batch: &Batch<'_>,
        stored: &mut dyn FnMut(usize),
    ) -> Result<(), KernelError> {
        let Self {
            cpu,
            config,
            inverse_frequencies,
            weights,
            pool,
            scratch,
            ..
        } = self;
        let rows = tokens.len();
        scratch.hidden.resize(rows * config.hidden_size);
        scratch.normed.resize(rows * config.hidden_size);
        scratch.query.resize(rows * config.head_count * config.head_size);
        scratch.attended.resize(rows * config.head_count * config.head_size);
        scratch.key.resize(rows * config.kv_head_count * config.head_size);
        scratch.value.resize(rows * config.kv_head_count * config.head_size);
        scratch.gated.resize(rows * config.intermediate_size);
        gather_rows(cpu, &weights.embedding, tokens, &mut scratch.hidden)?;
        if config.options.embedding_scale != 1.0 {
            scratch
                .hidden
                .iter_mut()
                .for_each(|x| *x *= config.options.embedding_scale);
        }
        scratch
            .rope
            .fill(cpu, batch, inverse_frequencies, config.rope.attention_factor());
        for (index, layer) in weights.layers.iter().enumerate() {
            project(cpu, config, pool, index, layer, batch, scratch)?;
            stored(index + 1);
            attend(cpu, pool, index, layer, batch, scratch)?;
            feed_forward(cpu, config, layer, rows, scratch)?;
        }
        Ok(())
    }

    fn run_head(&mut self, logit_rows: &[usize], logits: &mut AlignedF32) -> Result<(), KernelError> {
        let Self {
            cpu,
            config,
            weights,
            scratch,
            ..
        } = self;
        let (rows, width) = (logit_rows.len(), config.hidden_size);
        logits.resize(rows * config.vocab_size);
        // Rows ascend, so gathering them to the front never overwrites one that is still needed.
        for (to, from) in logit_rows.iter().enumerate() {
            scratch.hidden.copy_within(from * width..(from + 1) * width, to * width);
        }
        scratch.normed.resize(rows * width);
        rmsnorm(
            cpu,
            &mut scratch.normed,
            &scratch.hidden[..rows * width],
            &weights.output_norm,
            config.rms_norm_eps,
        )?;
        let head = weights.head();
        let x = prepare(cpu, &mut scratch.activations, &scratch.normed, rows, &[head])?;
        linear(
            cpu,
            x,
            &mut [Product {
                weights: head,
                out: logits,
                accumulate: false,
            }],
        )
    }
}

/// Queries, keys and values of `norm(hidden)`, rotated; keys and values go into the pool.
fn project(
    cpu: &Cpu,
    config: &ModelConfig,
    pool: &KvShards,
    index: usize,
    layer: &LayerWeights,
    batch: &Batch<'_>,
    scratch: &mut Scratch,
) -> Result<(), KernelError> {
    let rows = batch.rows();
    rmsnorm(
        cpu,
        &mut scratch.normed,
        &scratch.hidden,
        &layer.attention_norm,
        config.rms_norm_eps,
    )?;
    let weights = [&layer.query, &layer.key, &layer.value];
    let x = prepare(cpu, &mut scratch.activations, &scratch.normed, rows, &weights)?;
    let outs: [&mut [f32]; 3] = [&mut scratch.query, &mut scratch.key, &mut scratch.value];
    linear(cpu, x, &mut pair(weights, outs))?;
    if let Some(biases) = &layer.extras.qkv_bias {
        let outs = [&mut scratch.query, &mut scratch.key, &mut scratch.value];
        outs.into_iter()
            .zip(biases)
            .try_for_each(|(out, bias)| add_bias(cpu, out, bias))?;
    }
    if let Some(norms) = &layer.extras.head_norms {
        for (heads, norm) in [&mut scratch.query, &mut scratch.key].into_iter().zip(norms) {
            scratch.normed_heads.resize(heads.len());
            rmsnorm(cpu, &mut scratch.normed_heads, heads, norm, config.rms_norm_eps)?;
            std::mem::swap(heads, &mut scratch.normed_heads);
        }
    }
    let projections = Projections {
        query: &mut scratch.query,
        key: &mut scratch.key,
        value: &scratch.value,
    };
    rotate_and_store(cpu, pool, index, batch, &scratch.rope, projections)
}

/// `hidden += attention(queries)`
fn attend(
    cpu: &Cpu,
    pool: &KvShards,
    index: usize,
    layer: &LayerWeights,
    batch: &Batch<'_>,
    scratch: &mut Scratch,
) -> Result<(), KernelError> {
    let rows = batch.rows();
    attention(cpu, pool, index, batch, &scratch.query, &mut scratch.attended)?;
    let x = prepare(
        cpu,
        &mut scratch.activations,
        &scratch.attended,
        rows,
        &[&layer.attention_output],
    )?;
    linear(
        cpu,
        x,
        &mut [Product {
            weights: &layer.attention_output,
            out: &mut scratch.hidden,
            accumulate: true,
        }],
    )?;
    match &layer.extras.attention_output_bias {
        Some(bias) => add_bias(cpu, &mut scratch.hidden, bias),
        None => Ok(()),
    }
}

/// `hidden += down(act(gate(norm(hidden))) · up(norm(hidden)))`
fn feed_forward(
    cpu: &Cpu,
    config: &ModelConfig,
    layer: &LayerWeights,
    rows: usize,
    scratch: &mut Scratch,
) -> Result<(), KernelError> {
    rmsnorm(
        cpu,
        &mut scratch.normed,
        &scratch.hidden,
        &layer.mlp_norm,
        config.rms_norm_eps,
    )?;
    let x = prepare(
        cpu,
        &mut scratch.activations,
        &scratch.normed,
        rows,
        &[&layer.gate, &layer.up],
    )?;
    let act = match config.options.activation {
        Activation::Silu => Gate::Silu,
        Activation::GeluTanh => Gate::GeluTanh,
    };
    gated_linear(cpu, x, act, &layer.gate, &layer.up, &mut scratch.gated)?;
    let x = prepare(cpu, &mut scratch.activations, &scratch.gated, rows, &[&layer.down])?;
    linear(
        cpu,
        x,
        &mut [Product {
            weights: &layer.down,
            out: &mut scratch.hidden,
            accumulate: true,
        }],
    )
}

fn pair<'a, const N: usize>(weights: [&'a PackedMatrix; N], outs: [&'a mut [f32]; N]) -> Vec<Product<'a>> {
    weights
        .into_iter()
        .zip(outs)
        .map(|(weights, out)| Product {
            weights,
            out,
            accumulate: false,
        })
        .collect()
}

/// The rows in the forms that the weights multiply.
fn prepare<'a>(
    cpu: &Cpu,
    activations: &'a mut Activations,
    x: &[f32],
    rows: usize,
    weights: &[&PackedMatrix],
) -> Result<&'a Activations, KernelError> {
    activations.prepare(cpu, x, rows, weights)?;
    Ok(activations)
}

impl Backend for CpuBackend {
    fn forward(
        &mut self,
        tokens: &[u32],
        spans: Vec<Span<'_>>,
        logit_rows: &[usize],
        logits: &mut AlignedF32,
        stored: &mut dyn FnMut(usize),
    ) -> Result<(), StepError> {
        let pool = Arc::clone(&self.pool);
        let batch = Batch::new(&pool, spans)?;
        self.run_layers(tokens, &batch, stored)?;
        if logit_rows.is_empty() {
            logits.resize(0);
            return Ok(());
        }
        Ok(self.run_head(logit_rows, logits)?)
    }

    fn launch(
        &mut self,
        tokens: &[TokenSource],
        spans: Vec<Span<'_>>,
        logit_rows: &[usize],
        stored: &mut dyn FnMut(usize),
    ) -> Result<(), StepError> {
        let known = |token: &TokenSource| match token {
            TokenSource::Known(token) => Ok(*token),
            TokenSource::Chosen(_) => Err(StepError::Internal(
                "a pass was begun before the one before ended".into(),
            )),
        };
        let tokens: Vec<u32> = tokens.iter().map(known).collect::<Result<_, _>>()?;
        let mut logits = std::mem::take(&mut self.logits);
        let computed = self.forward(&tokens, spans, logit_rows, &mut logits, stored);
        self.logits = logits;
        computed
    }

    fn read(&mut self, readings: &[Reading<'_>]) -> Result<(), StepError> {
        self.reads = read_logits(&self.cpu, &self.logits, self.config.vocab_size, readings);
        Ok(())
    }

    fn collect(&mut self, _stored: &mut dyn FnMut(usize)) -> Result<Vec<Read>, StepError> {
        Ok(std::mem::take(&mut self.reads))
    }

    fn place(&mut self, run: Relocation<'_>) -> Result<(), StepError> {
        place(&self.cpu, &self.pool, run, &self.inverse_frequencies)
            .map_err(|error| StepError::Internal(error.to_string()))
    }

    fn rows_max(&self) -> usize {
        ROWS_MAX
    }

    fn pool(&self) -> &Arc<KvShards> {
        &self.pool
    }

    fn description(&self) -> String {
        self.cpu.description()
    }

    fn weight_bytes_per_step(&self) -> usize {
        self.weights.bytes_per_step()
    }

    fn weight_macs(&self) -> (WeightMacs, WeightMacs) {
        self.weights.macs()
    }
}
