//! The transformer on a device.

use crate::attend::{Attend, DeviceRows, attend, partial_bytes};
use crate::device::{Buffer, Device, DeviceError};
use crate::device_weights::{DeviceLayer, DeviceWeights};
use crate::ops::{self, Activation, Gemm, PoolShape, Relocate, RmsNorm, RopeTable, RotateAndStore};
use crate::remote_kv::DeviceKv;
use crate::scratch::Scratch;
use crate::step_plan::{Division, StepRows};
use kvasir_engine::bench::WeightMacs;
use kvasir_engine::{Backend, EngineError, StepError, Weights};
use kvasir_kernels::{AlignedF32, Batch, KvDtype, KvPool, KvShape, KvShards, Relocation, Span};
use kvasir_model::ModelConfig;
use std::sync::Arc;

/// Rows of one pass. More amortise launches better; each takes about 100 KB of activations at the shape of Llama-3-8B.
const ROWS_MAX: usize = 8192;

/// Part of the memory left after the weights that KV may take; the rest is for activations and logits.
const KV_SHARE: f64 = 0.9;

/// How to run a model on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaOptions {
    /// Bytes of the KV pool; 0 takes nine tenths of what the weights leave.
    pub kv_bytes: u64,
    /// Tokens per block: 16, 32 or 64.
    pub block_size: usize,
    /// How attention is divided.
    pub division: Division,
}

/// Weights, pool and scratch memory of one model on a device. Activations between products are bf16, the residual stream and sums are f32.
pub struct CudaBackend {
    device: Arc<dyn Device>,
    config: ModelConfig,
    weights: DeviceWeights,
    frequencies: Buffer,
    inverse_frequencies: Vec<f32>,
    pool: Arc<KvShards>,
    pool_memory: Buffer,
    shape: PoolShape,
    division: Division,
    scratch: Scratch,
    macs: (WeightMacs, WeightMacs),
}

impl CudaBackend {
    /// Uploads the weights and makes the pool. `transfers` moves KV: another stream of the device, or the device itself.
    ///
    /// # Errors
    /// [`EngineError::Configuration`] for what the kernels cannot do, and when memory runs out; [`EngineError::Shape`].
    pub fn new(
        device: Arc<dyn Device>,
        transfers: Arc<dyn Device>,
        config: ModelConfig,
        weights: &Weights,
        options: CudaOptions,
    ) -> Result<Self, EngineError> {
        weights.check(&config)?;
        check(&config)?;
        let refused = |error: DeviceError| EngineError::Configuration(error.to_string());
        let uploaded = DeviceWeights::upload(&*device, weights).map_err(refused)?;
        let shape = PoolShape {
            layer_count: config.layer_count,
            kv_head_count: config.kv_head_count,
            head_size: config.head_size,
            block_size: options.block_size,
        };
        let kv_bytes = match options.kv_bytes {
            0 => (device.free_bytes().map_err(refused)? as f64 * KV_SHARE) as u64,
            bytes => bytes,
        };
        // The kernels count slots in 32 bits.
        let blocks_max = u64::from(u32::MAX) / options.block_size.max(1) as u64;
        let block_count = (kv_bytes / shape.block_bytes().max(1) as u64).min(blocks_max) as u32;
        let pool_memory = device
            .allocate(block_count as usize * shape.block_bytes())
            .map_err(refused)?;
        let remote = DeviceKv::new(transfers, pool_memory.clone(), shape).map_err(refused)?;
        let kv_shape = KvShape {
            layer_count: shape.layer_count,
            kv_head_count: shape.kv_head_count,
            head_size: shape.head_size,
            block_size: shape.block_size,
            dtype: KvDtype::Bf16,
        };
        let pool = Arc::new(KvShards::whole(KvPool::remote(
            kv_shape,
            block_count,
            Box::new(remote),
        )?));
        let inverse_frequencies = config.rope.inverse_frequencies();
        let bytes: Vec<u8> = inverse_frequencies.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let frequencies = device.allocate(bytes.len()).map_err(refused)?;
        device.write(&frequencies, 0, &bytes).map_err(refused)?;
        Ok(Self {
            device,
            weights: uploaded,
            frequencies,
            inverse_frequencies,
            pool,
            pool_memory,
            shape,
            division: options.division,
            scratch: Scratch::default(),
            macs: weights.macs(),
            config,
        })
    }

    fn run(
        &mut self,
        tokens: &[u32],
        spans: &[Span<'_>],
        logit_rows: &[usize],
        logits: &mut AlignedF32,
    ) -> Result<(), DeviceError> {
        let device = Arc::clone(&self.device);
        let config = &self.config;
        let (rows, hidden) = (tokens.len(), config.hidden_size);
        let group = config.head_count / config.kv_head_count;
        let plan = StepRows::new(spans, self.shape.block_size, group, self.division);
        let [sums, stats] = partial_bytes(&plan, config.head_count, config.head_size);
        let table_bytes = rows * 8 * self.inverse_frequencies.len();
        let words = DeviceRows::words(&plan) + rows + logit_rows.len() + 8;
        self.scratch
            .fit(&*device, config, rows, [table_bytes, sums, stats, 4 * words])?;
        let scratch = &self.scratch;
        let device_rows = DeviceRows::upload(&*device, scratch.words()?, &plan)?;
        let ids = scratch
            .words()?
            .part(4 * DeviceRows::words(&plan), 4 * rows.next_multiple_of(4))?;
        device.write(&ids, 0, &bytes_of(tokens))?;
        ops::embedding(
            &*device,
            &self.weights.embedding,
            &ids,
            scratch.hidden()?,
            [rows, hidden],
            config.options.embedding_scale,
        )?;
        let op = RopeTable {
            positions: &device_rows.positions,
            frequencies: &self.frequencies,
            table: scratch.table()?,
            rows,
            half: self.inverse_frequencies.len(),
            scale: config.rope.attention_factor(),
        };
        ops::rope_table(&*device, op)?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.run_layer(index, layer, rows, &plan, &device_rows)?;
        }
        logits.resize(logit_rows.len() * config.vocab_size);
        if logit_rows.is_empty() {
            // Whoever hears that the step is over may read its KV on another stream.
            return device.read(scratch.hidden()?, 0, &mut []);
        }
        let count = logit_rows.len();
        let chosen: Vec<u32> = logit_rows.iter().map(|row| *row as u32).collect();
        let index = scratch
            .words()?
            .part(4 * (DeviceRows::words(&plan) + rows.next_multiple_of(4)), 4 * count)?;
        device.write(&index, 0, &bytes_of(&chosen))?;
        self.norm(None, &self.weights.output_norm, count, Some(&index), true)?;
        let out = device.allocate(count * config.vocab_size * 4)?;
        device.product(&Gemm {
            x: scratch.normed()?,
            weights: &self.weights.head,
            out: &out,
            is_f32: true,
            rows: count,
            cols: config.vocab_size,
            inner: hidden,
        })?;
        let mut bytes = vec![0; count * config.vocab_size * 4];
        device.read(&out, 0, &mut bytes)?;
        for (logit, bytes) in logits.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *logit = f32::from_ne_bytes(*bytes);
        }
        Ok(())
    }

    /// `hidden += delta + bias`, `normed = norm(hidden)`.
    fn norm(
        &self,
        bias: Option<&Buffer>,
        weight: &Buffer,
        rows: usize,
        row_index: Option<&Buffer>,
        has_delta: bool,
    ) -> Result<(), DeviceError> {
        let scratch = &self.scratch;
        let op = RmsNorm {
            hidden: scratch.hidden()?,
            delta: if has_delta { Some(scratch.delta()?) } else { None },
            bias,
            weight,
            out: scratch.normed()?,
            row_index,
            rows,
            width: self.config.hidden_size,
            eps: self.config.rms_norm_eps,
        };
        ops::rmsnorm(&*self.device, op)
    }

    fn run_layer(
        &self,
        index: usize,
        layer: &DeviceLayer,
        rows: usize,
        plan: &StepRows,
        device_rows: &DeviceRows,
    ) -> Result<(), DeviceError> {
        let (device, config, scratch) = (&*self.device, &self.config, &self.scratch);
        let (hidden, size) = (config.hidden_size, config.head_size);
        let queries = config.head_count * size;
        let qkv_width = queries + 2 * config.kv_head_count * size;
        let product = |x: &Buffer, weights: &Buffer, out: &Buffer, is_f32, cols, inner| {
            device.product(&Gemm {
                x,
                weights,
                out,
                is_f32,
                rows,
                cols,
                inner,
            })
        };
        self.norm(None, &layer.attention_norm, rows, None, index > 0)?;
        product(scratch.normed()?, &layer.qkv, scratch.qkv()?, true, qkv_width, hidden)?;
        if let Some(bias) = &layer.qkv_bias {
            ops::add_bias(device, scratch.qkv()?, bias, [rows, qkv_width])?;
        }
        let op = RotateAndStore {
            qkv: scratch.qkv()?,
            table: scratch.table()?,
            norms: layer.head_norms.as_ref().map(|[query, key]| [query, key]),
            slots: &device_rows.slots,
            query: scratch.query()?,
            pool: &self.pool_memory,
            shape: self.shape,
            layer: index,
            head_count: config.head_count,
            rows,
            half: self.inverse_frequencies.len(),
            eps: config.rms_norm_eps,
        };
        ops::rotate_and_store(device, op)?;
        let partials = scratch.partials()?;
        let op = Attend {
            query: scratch.query()?,
            pool: &self.pool_memory,
            out: scratch.attended()?,
            partials: (self.division.partition > 0).then_some(partials),
            shape: self.shape,
            layer: index,
            head_count: config.head_count,
            partition: self.division.partition,
        };
        attend(device, plan, device_rows, &op)?;
        product(
            scratch.attended()?,
            &layer.attention_output,
            scratch.delta()?,
            true,
            hidden,
            queries,
        )?;
        self.norm(layer.attention_output_bias.as_ref(), &layer.mlp_norm, rows, None, true)?;
        let width = config.intermediate_size;
        product(
            scratch.normed()?,
            &layer.gate_up,
            scratch.gate_up()?,
            false,
            2 * width,
            hidden,
        )?;
        let activation = match config.options.activation {
            kvasir_model::Activation::Silu => Activation::Silu,
            kvasir_model::Activation::GeluTanh => Activation::GeluTanh,
        };
        ops::gated(device, scratch.gate_up()?, scratch.gated()?, [rows, width], activation)?;
        product(scratch.gated()?, &layer.down, scratch.delta()?, true, hidden, width)
    }

    fn relocate(&mut self, run: Relocation<'_>) -> Result<(), DeviceError> {
        let size = self.shape.block_size;
        let slots = |blocks: &[u32], start: usize| -> Vec<u32> {
            let slot = |at: usize| blocks[at / size] * size as u32 + (at % size) as u32;
            (start..start + run.token_count).map(slot).collect()
        };
        let upload = |bytes: Vec<u8>| -> Result<Buffer, DeviceError> {
            let buffer = self.device.allocate(bytes.len())?;
            self.device.write(&buffer, 0, &bytes)?;
            Ok(buffer)
        };
        let half = self.inverse_frequencies.len();
        let angles = self
            .inverse_frequencies
            .iter()
            .map(|f| run.position_shift as f64 * f64::from(*f));
        let turns = angles.clone().map(f64::cos).chain(angles.map(f64::sin));
        let turn = upload(turns.flat_map(|x| (x as f32).to_ne_bytes()).collect())?;
        let op = Relocate {
            pool: &self.pool_memory,
            source: &upload(bytes_of(&slots(run.source_blocks, run.source_start)))?,
            target: &upload(bytes_of(&slots(run.target_blocks, run.target_start)))?,
            turn: (run.position_shift != 0).then_some(&turn),
            shape: self.shape,
            token_count: run.token_count,
            half,
        };
        ops::relocate(&*self.device, op)
    }
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Sizes that the kernels take.
fn check(config: &ModelConfig) -> Result<(), EngineError> {
    let refuse = |what: &str, value: usize, allowed: &str| {
        Err(EngineError::Configuration(format!(
            "{what} is {value}; the CUDA kernels take {allowed}; use --device cpu"
        )))
    };
    if !matches!(config.head_size, 16 | 32 | 64 | 96 | 128) {
        return refuse("head size", config.head_size, "16, 32, 64, 96 and 128");
    }
    for (what, value) in [
        ("hidden size", config.hidden_size),
        ("intermediate size", config.intermediate_size),
    ] {
        if !value.is_multiple_of(8) {
            return refuse(what, value, "multiples of 8");
        }
    }
    Ok(())
}

impl Backend for CudaBackend {
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
        self.run(tokens, batch.spans(), logit_rows, logits)
            .map_err(|error| StepError::Internal(error.to_string()))?;
        stored(self.shape.layer_count);
        Ok(())
    }

    fn place(&mut self, run: Relocation<'_>) -> Result<(), StepError> {
        self.relocate(run)
            .map_err(|error| StepError::Internal(error.to_string()))
    }

    fn rows_max(&self) -> usize {
        ROWS_MAX
    }

    fn pool(&self) -> &Arc<KvShards> {
        &self.pool
    }

    fn description(&self) -> String {
        self.device.description()
    }

    fn weight_bytes_per_step(&self) -> usize {
        self.weights.bytes_per_step
    }

    fn weight_macs(&self) -> (WeightMacs, WeightMacs) {
        self.macs
    }
}
