//! Speed of an engine: what `kvasir-sidecar bench-engine` prints.

use crate::engine::Engine;
use crate::error::StepError;
use crate::plan::{SamplingParams, SequenceStart, Slice, StepPlan};
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
    /// One for each batch size.
    pub decode: Vec<Measurement>,
    /// One for each prompt length.
    pub prefill: Vec<Measurement>,
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
    /// All repetitions, in order.
    pub samples: Vec<f64>,
}

/// Measures greedy decoding and prefill of made-up tokens. The engine must have no sequences; it has none afterwards.
///
/// # Errors
/// [`StepError::MissingBlocks`] and the like when the pool or the context is too small for the options.
pub fn run(engine: &mut Engine, options: &BenchOptions) -> Result<BenchReport, StepError> {
    let mut report = BenchReport {
        device: engine.description(),
        weight_bytes_per_step: engine.weight_bytes_per_step(),
        decode: Vec::new(),
        prefill: Vec::new(),
    };
    for &batch in &options.decode_batches {
        let mut samples = Vec::new();
        for repetition in 0..=options.repetitions {
            let rate = decode(engine, batch, options.decode_context, options.decode_steps);
            engine.reset();
            if repetition > 0 {
                samples.push(rate?);
            }
        }
        report.decode.push(Measurement::new(batch, samples));
    }
    for &length in &options.prefill_lengths {
        let mut samples = Vec::new();
        for repetition in 0..=options.repetitions {
            let started = Instant::now();
            let outcome = prefill(engine, 1, length, 1);
            let seconds = started.elapsed().as_secs_f64();
            engine.reset();
            outcome?;
            if repetition > 0 {
                samples.push(length as f64 / seconds);
            }
        }
        report.prefill.push(Measurement::new(length, samples));
    }
    Ok(report)
}

impl Measurement {
    fn new(size: usize, samples: Vec<f64>) -> Self {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let tokens_per_second = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let best_tokens_per_second = sorted.last().copied().unwrap_or(0.0);
        Self {
            size,
            tokens_per_second,
            best_tokens_per_second,
            samples,
        }
    }
}

/// Prefills `batch` sequences of `length` made-up tokens each, one sequence after the other, with room for `max_tokens` more.
fn prefill(engine: &mut Engine, batch: usize, length: usize, max_tokens: usize) -> Result<(), StepError> {
    let vocab = engine.config().vocab_size as u32;
    let blocks_each = (length + max_tokens).div_ceil(engine.layout().block_size);
    for sequence in 0..batch {
        let first_block = (sequence * blocks_each) as u32;
        let sampling = SamplingParams {
            max_tokens: max_tokens as u32 + 1,
            ..SamplingParams::default()
        };
        let start = SequenceStart {
            sequence_id: sequence as u64,
            prompt_token_count: length as u32,
            sampling,
            block_ids: (first_block..first_block + blocks_each as u32).collect(),
            prompt_token_ids: Vec::new(),
        };
        let slice = Slice {
            sequence_id: sequence as u64,
            start_position: 0,
            token_count: length as u32,
            token_ids: (0..length as u32)
                .map(|i| (i * 7919 + sequence as u32 * 104_729) % vocab)
                .collect(),
            appended_block_ids: Vec::new(),
            sample: true,
        };
        engine.step(&StepPlan {
            placements: Vec::new(),
            starts: vec![start],
            slices: vec![slice],
            dropped: Vec::new(),
        })?;
    }
    Ok(())
}

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
    Ok((batch * steps) as f64 / started.elapsed().as_secs_f64())
}
