//! The engine's backend: a model on a device.

use crate::attend::{DeviceRows, partial_bytes};
use crate::chooser::Chooser;
use crate::device::{Buffer, Device, DeviceError};
use crate::device_weights::DeviceWeights;
use crate::graphs::Graphs;
use crate::kv_memory::KvMemory;
use crate::ops::{self, PoolShape, Relocate};
use crate::remote_kv::{DeviceKv, DevicePool};
use crate::scratch::{Scratch, ScratchSizes};
use crate::step_plan::{Division, StepRows, padded_rows};
use crate::transformer::Transformer;
use kvasir_engine::bench::WeightMacs;
use kvasir_engine::{Backend, EngineError, Read, Reading, StepError, TokenSource, Weights};
use kvasir_kernels::{AlignedF32, Batch, KvDtype, KvPool, KvShape, KvShards, Relocation, Span};
use kvasir_model::{ModelConfig, ModelSource};
use std::sync::Arc;

/// Rows of one pass at most. More amortise launches better; each takes about 100 KB of activations at the shape of Llama-3-8B.
const ROWS_MAX: usize = 8192;

/// How to run a model on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CudaOptions {
    /// How much memory KV gets.
    pub kv_memory: KvMemory,
    /// Tokens per block: 16, 32 or 64.
    pub block_size: usize,
    /// How attention is divided.
    pub division: Division,
    /// Rows of one pass, for which there is memory from the beginning; at most 8192 count.
    pub rows_max: usize,
    /// Whether passes of decode rows are recorded and run again as one.
    pub graphs: bool,
}

/// Weights, pool and scratch memory of one model on a device. Activations between products are bf16, the residual stream and sums are f32.
pub struct CudaBackend {
    device: Arc<dyn Device>,
    config: ModelConfig,
    weights: DeviceWeights,
    frequencies: Buffer,
    inverse_frequencies: Vec<f32>,
    pool: Arc<KvShards>,
    /// One block more than the pool tells of: rows of padding store their KV there.
    pool_memory: Buffer,
    padding: [u32; 1],
    shape: PoolShape,
    options: CudaOptions,
    scratch: Scratch,
    graphs: Option<Graphs>,
    chooser: Chooser,
    /// Rows of logits of the pass launched last, padding included.
    logit_rows: usize,
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
        let upload = |device: &dyn Device| DeviceWeights::upload(device, &config, weights).map_err(refused);
        Self::build(device, transfers, config.clone(), upload, options)
    }

    /// The same from a model's files; the host keeps no weights.
    ///
    /// # Errors
    /// As [`CudaBackend::new`], and those of reading.
    pub fn load(
        device: Arc<dyn Device>,
        transfers: Arc<dyn Device>,
        source: &ModelSource,
        options: CudaOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, EngineError> {
        let load = |device: &dyn Device| DeviceWeights::load(device, source, progress);
        Self::build(device, transfers, source.config().clone(), load, options)
    }

    /// The same over weights of any origin, for measurements.
    ///
    /// # Errors
    /// As [`CudaBackend::new`], and what `weights` fails with.
    pub fn of_weights(
        device: Arc<dyn Device>,
        transfers: Arc<dyn Device>,
        config: ModelConfig,
        weights: impl FnOnce(&dyn Device) -> Result<DeviceWeights, DeviceError>,
        options: CudaOptions,
    ) -> Result<Self, EngineError> {
        let weights = |device: &dyn Device| weights(device).map_err(refused);
        Self::build(device, transfers, config, weights, options)
    }

    fn build(
        device: Arc<dyn Device>,
        transfers: Arc<dyn Device>,
        config: ModelConfig,
        weights: impl FnOnce(&dyn Device) -> Result<DeviceWeights, EngineError>,
        options: CudaOptions,
    ) -> Result<Self, EngineError> {
        Self::check(&config)?;
        let before = device.memory().map_err(refused)?;
        let weights = weights(&*device)?;
        let inverse_frequencies = config.rope.inverse_frequencies();
        let rows = options.rows_max.clamp(1, ROWS_MAX);
        let mut scratch = Scratch::default();
        let sizes = ScratchSizes {
            table: rows * 8 * inverse_frequencies.len(),
            ..ScratchSizes::default()
        };
        scratch.fit(&*device, &config, rows, sizes).map_err(refused)?;
        let shape = PoolShape {
            layer_count: config.layer_count,
            kv_head_count: config.kv_head_count,
            head_size: config.head_size,
            block_size: options.block_size,
        };
        let now = device.memory().map_err(refused)?;
        let kv_bytes = options
            .kv_memory
            .bytes(before, now)
            .map_err(EngineError::Configuration)?;
        // The kernels count slots in 32 bits.
        let blocks_max = u64::from(u32::MAX) / options.block_size.max(1) as u64 - 1;
        let block_count = (kv_bytes / shape.block_bytes().max(1) as u64).min(blocks_max) as u32;
        let kv_shape = KvShape {
            layer_count: shape.layer_count,
            kv_head_count: shape.kv_head_count,
            head_size: shape.head_size,
            block_size: shape.block_size,
            dtype: KvDtype::Bf16,
        };
        let pool_memory = device
            .allocate((block_count as usize + 1) * shape.block_bytes())
            .map_err(refused)?;
        let remote = DeviceKv::new(transfers, pool_memory.clone(), shape).map_err(refused)?;
        let pool = KvPool::remote(kv_shape, block_count, Box::new(remote))?;
        let bytes: Vec<u8> = inverse_frequencies.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let frequencies = device.allocate(bytes.len()).map_err(refused)?;
        device.write(&frequencies, 0, &bytes).map_err(refused)?;
        Ok(Self {
            device,
            weights,
            frequencies,
            inverse_frequencies,
            pool: Arc::new(KvShards::whole(pool)),
            pool_memory,
            padding: [block_count],
            shape,
            options,
            scratch,
            graphs: options.graphs.then(Graphs::default),
            chooser: Chooser::default(),
            logit_rows: 0,
            config,
        })
    }

    /// Where the pool's blocks lie.
    pub fn device_pool(&self) -> DevicePool {
        DevicePool {
            memory: self.pool_memory.clone(),
            shape: self.shape,
        }
    }

    /// Whether the kernels can run a model of these sizes.
    ///
    /// # Errors
    /// [`EngineError::Configuration`].
    pub fn check(config: &ModelConfig) -> Result<(), EngineError> {
        let refuse = |what: &str, value: usize, allowed: &str| {
            Err(EngineError::Configuration(format!(
                "{what} is {value}; the CUDA kernels take {allowed}; use --device cpu"
            )))
        };
        if !ops::has_head_size(config.head_size) {
            return refuse("head size", config.head_size, ops::HEAD_SIZES);
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

    /// Starts a pass.
    fn start(&mut self, tokens: &[TokenSource], spans: &[Span<'_>], logit_rows: &[usize]) -> Result<(), DeviceError> {
        let device = Arc::clone(&self.device);
        let is_decode = spans.iter().all(|span| span.token_count == 1) && logit_rows.len() == tokens.len();
        let padded = match &self.graphs {
            Some(_) if is_decode && !tokens.is_empty() => padded_rows(tokens.len()),
            _ => tokens.len(),
        };
        let padding = (0..padded - tokens.len()).map(|i| Span {
            // Each stores one token of the block that nobody has, and sees those before it.
            start_position: i,
            token_count: 1,
            blocks: &self.padding,
        });
        let spans: Vec<Span<'_>> = spans
            .iter()
            .map(|span| Span {
                start_position: span.start_position,
                token_count: span.token_count,
                blocks: span.blocks,
            })
            .chain(padding)
            .collect();
        let group = self.config.head_count / self.config.kv_head_count;
        let mut plan = StepRows::new(&spans, self.shape.block_size, group, self.options.division);
        let shape = (is_decode && self.graphs.is_some()).then(|| plan.pad());
        let (mut ids, mut chosen) = (vec![0; padded], Vec::new());
        let mut from = None;
        for (row, token) in tokens.iter().enumerate() {
            match token {
                TokenSource::Known(token) => ids[row] = *token,
                TokenSource::Chosen(reading) => {
                    let (buffer, place) = self.chooser.chosen(*reading)?;
                    from = Some(buffer.clone());
                    chosen.extend([row as u32, place]);
                }
            }
        }
        let chosen_count = chosen.len() / 2;
        chosen.resize(2 * padded, 0);
        let index: Vec<u32> = match shape {
            Some(_) => (0..padded as u32).collect(),
            None => logit_rows.iter().map(|row| *row as u32).collect(),
        };
        self.logit_rows = index.len();
        let extra = [ids, index, chosen];
        let sizes = ScratchSizes {
            table: padded * 8 * self.inverse_frequencies.len(),
            partials: partial_bytes(&plan, self.config.head_count, self.config.head_size),
            words: 4 * DeviceRows::words(&plan, &extra),
            // As many again for rows that are changed before a token is chosen.
            logits: 2 * 4 * self.logit_rows * self.config.vocab_size,
        };
        let moved = self.scratch.fit(&*device, &self.config, padded, sizes)?;
        if let (true, Some(graphs)) = (moved, &mut self.graphs) {
            graphs.forget();
        }
        let rows = DeviceRows::upload(&*device, self.scratch.words()?, &plan, &extra)?;
        let [ids, index, chosen] = &rows.extra[..] else {
            return Err(DeviceError::Failed("a pass has three lists beside its plan".into()));
        };
        if let Some(tokens) = from {
            ops::chosen_tokens(&*device, [&tokens, chosen, ids], chosen_count)?;
        }
        let transformer = Transformer {
            device: &*device,
            config: &self.config,
            weights: &self.weights,
            frequencies: &self.frequencies,
            pool: &self.pool_memory,
            shape: self.shape,
            division: self.options.division,
            scratch: &self.scratch,
        };
        let mut work = || transformer.run(&plan, &rows, ids, index, self.logit_rows);
        match (&mut self.graphs, shape) {
            (Some(graphs), Some(shape)) => graphs.run(&*device, shape, &mut work),
            _ => work(),
        }
    }

    fn read_back(&self, logit_rows: usize, logits: &mut AlignedF32) -> Result<(), DeviceError> {
        let count = logit_rows * self.config.vocab_size;
        logits.resize(count);
        let mut bytes = vec![0; 4 * count];
        // Also without any: whoever hears that the pass is over may read its KV on another stream.
        self.device.read(self.scratch.logits()?, 0, &mut bytes)?;
        for (logit, bytes) in logits.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *logit = f32::from_ne_bytes(*bytes);
        }
        Ok(())
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

fn refused(error: DeviceError) -> EngineError {
    EngineError::Configuration(error.to_string())
}

fn internal(error: DeviceError) -> StepError {
    StepError::Internal(error.to_string())
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
        let known: Vec<TokenSource> = tokens.iter().copied().map(TokenSource::Known).collect();
        self.launch(&known, spans, logit_rows, &mut |_| {})?;
        self.read_back(logit_rows.len(), logits).map_err(internal)?;
        stored(self.shape.layer_count);
        Ok(())
    }

    fn launch(
        &mut self,
        tokens: &[TokenSource],
        spans: Vec<Span<'_>>,
        logit_rows: &[usize],
        _stored: &mut dyn FnMut(usize),
    ) -> Result<(), StepError> {
        let pool = Arc::clone(&self.pool);
        let batch = Batch::new(&pool, spans)?;
        self.start(tokens, batch.spans(), logit_rows).map_err(internal)
    }

    fn read(&mut self, readings: &[Reading<'_>]) -> Result<(), StepError> {
        let logits = self.scratch.logits().map_err(internal)?;
        let vocab = self.config.vocab_size;
        self.chooser
            .read(&*self.device, logits, readings, self.logit_rows, vocab)
            .map_err(internal)
    }

    fn collect(&mut self, stored: &mut dyn FnMut(usize)) -> Result<Vec<Read>, StepError> {
        let reads = self.chooser.collect().map_err(internal)?;
        stored(self.shape.layer_count);
        Ok(reads)
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn is_ready(&self) -> bool {
        self.chooser.is_ready()
    }

    fn place(&mut self, run: Relocation<'_>) -> Result<(), StepError> {
        self.relocate(run).map_err(internal)
    }

    fn rows_max(&self) -> usize {
        self.options.rows_max.clamp(1, ROWS_MAX)
    }

    fn pool(&self) -> &Arc<KvShards> {
        &self.pool
    }

    fn arithmetic(&self) -> Option<&'static str> {
        Some(if self.options.division == Division::DETERMINISTIC {
            "cuda-deterministic"
        } else {
            "cuda"
        })
    }

    fn description(&self) -> String {
        self.device.description()
    }

    fn weight_bytes_per_step(&self) -> usize {
        self.weights.bytes_per_step
    }

    fn weight_macs(&self) -> (WeightMacs, WeightMacs) {
        // All matrices are bf16, and so are the activations that meet them.
        let of = |buffer: &Buffer| buffer.byte_len() / 2;
        let layers = self.weights.layers.iter();
        let pairs = |pairs: usize| WeightMacs {
            pairs,
            ..WeightMacs::default()
        };
        let all =
            layers.map(|layer| of(&layer.qkv) + of(&layer.attention_output) + of(&layer.gate_up) + of(&layer.down));
        (pairs(all.sum()), pairs(of(&self.weights.head)))
    }
}
