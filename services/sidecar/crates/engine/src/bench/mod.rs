//! Speed of an engine beside what its machine can do: what `kvasir-sidecar bench-engine` prints.

mod attention;

pub use attention::AttentionMeasurement;

use crate::engine::Engine;
use crate::error::StepError;
use crate::plan::{Placement, SamplingParams, SequenceStart, Slice, StepPlan};
use kvasir_kernels::{KvShape, Roofline};
use std::time::Instant;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchOptions {
    /// Batch sizes of the decode measurements.
    pub decode_batches: Vec<usize>,
    /// Context of each decoding sequence when the measurement starts.
    pub decode_context: usize,
    /// Decode steps of one repetition.
    pub decode_steps: usize,
    /// Prompt lengths of the prefill measurements.
    pub prefill_lengths: Vec<usize>,
    /// Context lengths of the attention measurements; they may exceed the model's.
    pub attention_contexts: Vec<usize>,
    /// Repetitions after one that warms up.
    pub repetitions: usize,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            decode_batches: vec![1, 8, 32],
            decode_context: 512,
            decode_steps: 32,
            prefill_lengths: vec![512, 2048],
            attention_contexts: vec![1024, 8192, 32_768],
            repetitions: 5,
        }
    }
}

/// Figures of one run.
#[derive(Debug, Clone, serde::Serialize)]
pub struct BenchReport {
    /// Device, for people.
    pub device: String,
    /// Bytes of weights that every decode step reads.
    pub weight_bytes_per_step: usize,
    /// Bytes of one token's KV.
    pub kv_bytes_per_token: usize,
    /// The machine, for all threads: reading memory.
    pub read_bytes_per_second: f64,
    /// Multiply-adds of f32.
    pub f32_macs_per_second: f64,
    /// Multiply-adds of bf16.
    pub bf16_macs_per_second: f64,
    /// Multiply-adds of 8-bit integers.
    pub int8_macs_per_second: f64,
    /// One for each batch size.
    pub decode: Vec<Measurement>,
    /// One for each prompt length.
    pub prefill: Vec<Measurement>,
    /// One for each context length.
    pub attention: Vec<AttentionMeasurement>,
}

/// Tokens per second over the repetitions.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Measurement {
    /// Batch size, or prompt length.
    pub size: usize,
    /// Median.
    pub tokens_per_second: f64,
    /// Fastest repetition: what the code can do on a quiet machine.
    pub best_tokens_per_second: f64,
    /// Of the fastest repetition: bytes of weights and KV that a step must read, by the time that reading them takes at least.
    pub memory_share: f64,
    /// Of the fastest repetition: multiply-adds of weights and attention, by the time that they take at least.
    pub compute_share: f64,
    /// All repetitions, in order.
    pub samples: Vec<f64>,
}

/// Multiply-adds of one row with the weights, by what they are made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightMacs {
    /// With f32, f16 and bf16 weights, in f32.
    pub dense: usize,
    /// With weights kept as pairs of bf16, in bf16.
    pub pairs: usize,
    /// With quantised weights, in 8-bit integers.
    pub quantised: usize,
}

/// How much of what the machine can do a measurement used: the least time that its work takes, over the time it took.
struct Share;

impl Share {
    fn memory(bytes: usize, seconds: f64, roofline: &Roofline) -> f64 {
        bytes as f64 / roofline.read_bytes_per_second / seconds
    }

    fn compute(macs: WeightMacs, seconds: f64, roofline: &Roofline) -> f64 {
        let least = macs.dense as f64 / roofline.f32_macs_per_second
            + macs.pairs as f64 / roofline.bf16_macs_per_second
            + macs.quantised as f64 / roofline.int8_macs_per_second;
        least / seconds
    }
}

/// Work of one step or prompt.
struct Work {
    tokens: usize,
    bytes: usize,
    macs: WeightMacs,
}

impl Work {
    /// `rows` rows of which `logit_rows` reach the head and which see `seen` keys altogether; `read` tokens of KV are read.
    fn new(engine: &Engine, rows: usize, logit_rows: usize, seen: usize, read: usize) -> Self {
        let (layers, head) = engine.weight_macs();
        let config = engine.config();
        let attention = 2 * seen * config.head_count * config.head_size * config.layer_count;
        Self {
            tokens: rows,
            bytes: engine.weight_bytes_per_step() + read * engine.pool().bytes_per_token(),
            macs: WeightMacs {
                dense: rows * layers.dense + logit_rows * head.dense + attention,
                pairs: rows * layers.pairs + logit_rows * head.pairs,
                quantised: rows * layers.quantised + logit_rows * head.quantised,
            },
        }
    }
}

/// Measures greedy decoding and prefill of made-up tokens. The engine must have no sequences; it has none afterwards.
///
/// # Errors
/// [`StepError::MissingBlocks`] and the like when the pool or the context is too small for the options.
pub fn run(engine: &mut Engine, options: &BenchOptions) -> Result<BenchReport, StepError> {
    let roofline = Roofline::measure(engine.cpu());
    let mut report = BenchReport {
        device: engine.description(),
        weight_bytes_per_step: engine.weight_bytes_per_step(),
        kv_bytes_per_token: engine.pool().bytes_per_token(),
        read_bytes_per_second: roofline.read_bytes_per_second,
        f32_macs_per_second: roofline.f32_macs_per_second,
        bf16_macs_per_second: roofline.bf16_macs_per_second,
        int8_macs_per_second: roofline.int8_macs_per_second,
        decode: Vec::new(),
        prefill: Vec::new(),
        attention: Vec::new(),
    };
    let (context, steps) = (options.decode_context, options.decode_steps);
    for &batch in &options.decode_batches {
        let seen = batch * (context + steps / 2);
        let work = Work::new(engine, batch, batch, seen, seen);
        let sample = |engine: &mut Engine| Ok(decode(engine, batch, context, steps)? / steps as f64);
        let seconds = samples(engine, options.repetitions, sample)?;
        report.decode.push(Measurement::new(batch, &work, &seconds, &roofline));
    }
    for &length in &options.prefill_lengths {
        let work = Work::new(engine, length, 1, length * (length + 1) / 2, length);
        let sample = |engine: &mut Engine| {
            let started = Instant::now();
            prefill(engine, 1, length, 1)?;
            Ok(started.elapsed().as_secs_f64())
        };
        let seconds = samples(engine, options.repetitions, sample)?;
        report
            .prefill
            .push(Measurement::new(length, &work, &seconds, &roofline));
    }
    let (shape, heads): (KvShape, usize) = (*engine.pool().shape(), engine.config().head_count);
    for &context in &options.attention_contexts {
        let measured = attention::measure(engine.cpu(), shape, heads, context, options.repetitions, &roofline)?;
        report.attention.push(measured);
    }
    Ok(report)
}

/// Seconds of each repetition but the first; the engine is empty before and after each.
fn samples(
    engine: &mut Engine,
    repetitions: usize,
    mut sample: impl FnMut(&mut Engine) -> Result<f64, StepError>,
) -> Result<Vec<f64>, StepError> {
    let mut seconds = Vec::with_capacity(repetitions);
    for repetition in 0..=repetitions {
        let outcome = sample(engine);
        engine.reset();
        let outcome = outcome?;
        if repetition > 0 {
            seconds.push(outcome);
        }
    }
    Ok(seconds)
}

/// Fastest of the repetitions after one that warms up.
fn best_seconds<E>(repetitions: usize, mut run: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut best = f64::INFINITY;
    for repetition in 0..=repetitions {
        let started = Instant::now();
        run()?;
        if repetition > 0 {
            best = best.min(started.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

impl Measurement {
    fn new(size: usize, work: &Work, seconds: &[f64], roofline: &Roofline) -> Self {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let best = sorted.first().copied().unwrap_or(f64::NAN);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
        let rate = |seconds: f64| work.tokens as f64 / seconds;
        Self {
            size,
            tokens_per_second: rate(median),
            best_tokens_per_second: rate(best),
            memory_share: Share::memory(work.bytes, best, roofline),
            compute_share: Share::compute(work.macs, best, roofline),
            samples: seconds.iter().copied().map(rate).collect(),
        }
    }
}

/// Gives `batch` sequences a context of `length` made-up tokens each, with room for `max_tokens` more. The first computes it, the others copy
/// its KV into blocks of their own and compute their last token.
fn prefill(engine: &mut Engine, batch: usize, length: usize, max_tokens: usize) -> Result<(), StepError> {
    let vocab = engine.config().vocab_size as u32;
    let blocks_each = (length + max_tokens).div_ceil(engine.layout().block_size) as u32;
    let blocks = |sequence: usize| {
        let first = sequence as u32 * blocks_each;
        (first..first + blocks_each).collect::<Vec<u32>>()
    };
    let token = |position: usize, sequence: usize| (position as u32 * 7919 + sequence as u32 * 104_729) % vocab;
    let copied = (length - 1) as u32;
    for sequence in 0..batch {
        let sampling = SamplingParams {
            max_tokens: max_tokens as u32 + 1,
            ..SamplingParams::default()
        };
        let computed = if sequence == 0 { 0..length } else { length - 1..length };
        let placement = Placement {
            source_block_ids: blocks(0),
            source_start: 0,
            target_block_ids: blocks(sequence),
            target_start: 0,
            token_count: copied,
            position_shift: 0,
        };
        let start = SequenceStart {
            sequence_id: sequence as u64,
            prompt_token_count: length as u32,
            sampling,
            block_ids: blocks(sequence),
            prompt_token_ids: Vec::new(),
        };
        let slice = Slice {
            sequence_id: sequence as u64,
            start_position: computed.start as u32,
            token_count: computed.len() as u32,
            token_ids: computed.map(|position| token(position, sequence)).collect(),
            appended_block_ids: Vec::new(),
            sample: true,
        };
        engine.step(&StepPlan {
            placements: if sequence == 0 || copied == 0 {
                Vec::new()
            } else {
                vec![placement]
            },
            starts: vec![start],
            slices: vec![slice],
            dropped: Vec::new(),
        })?;
    }
    Ok(())
}

/// Seconds of `steps` decode steps.
fn decode(engine: &mut Engine, batch: usize, context: usize, steps: usize) -> Result<f64, StepError> {
    prefill(engine, batch, context, steps)?;
    let started = Instant::now();
    for step in 0..steps {
        let slice = |sequence| Slice {
            sequence_id: sequence as u64,
            start_position: (context + step) as u32,
            token_count: 1,
            sample: true,
            ..Slice::default()
        };
        engine.step(&StepPlan {
            placements: Vec::new(),
            slices: (0..batch).map(slice).collect(),
            ..StepPlan::default()
        })?;
    }
    Ok(started.elapsed().as_secs_f64())
}
