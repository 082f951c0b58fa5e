//! A tiny random model and a driver for it.
#![allow(dead_code)] // Each test binary uses its part.

use kvasir_engine::{
    Engine, EngineOptions, KvDtype, LayerExtras, LayerWeights, PackedMatrix, SamplingParams, SequenceStart, Slice,
    SliceOutcome, StepPlan, WeightFormat, WeightType, Weights, random::uniform,
};
use kvasir_model::{LayerOptions, ModelConfig, RopeConfig, RopeScaling};

pub const VOCAB: usize = 83;
pub const CONTEXT: usize = 256;

pub fn config() -> ModelConfig {
    ModelConfig {
        architecture: "llama".into(),
        hidden_size: 64,
        intermediate_size: 96,
        layer_count: 2,
        head_count: 4,
        kv_head_count: 2,
        head_size: 16,
        vocab_size: VOCAB,
        context_length: CONTEXT,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            base: 10_000.0,
            dim: 16,
            scaling: RopeScaling::None,
        },
        options: LayerOptions::default(),
        tied_embeddings: false,
        eos_token_ids: vec![2],
        bos_token_id: None,
    }
}

pub fn weights(weight_type: WeightType) -> Weights {
    let mut seed = 0;
    let mut matrix = |rows: usize, cols: usize| {
        seed += 1;
        let value = |index: usize| ((uniform(seed, index as u64) * 2.0 - 1.0) * (3.0 / cols as f64).sqrt()) as f32;
        let bytes: Vec<u8> = match weight_type {
            WeightType::F32 => (0..rows * cols).flat_map(|i| value(i).to_le_bytes()).collect(),
            WeightType::F16 => (0..rows * cols)
                .flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes())
                .collect(),
            WeightType::Bf16 | WeightType::Bf16Pairs => (0..rows * cols)
                .flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes())
                .collect(),
            _ => (0..rows * cols / 32)
                .flat_map(|block| quantised_block(weight_type, seed, block, cols))
                .collect(),
        };
        PackedMatrix::pack(weight_type, rows, cols, &bytes).unwrap()
    };
    let layers = (0..2)
        .map(|layer| LayerWeights {
            attention_norm: (0..64).map(|i| 1.0 + (i + layer) as f32 / 200.0).collect(),
            query: matrix(64, 64),
            key: matrix(32, 64),
            value: matrix(32, 64),
            attention_output: matrix(64, 64),
            mlp_norm: (0..64).map(|i| 1.1 - (i + layer) as f32 / 300.0).collect(),
            gate: matrix(96, 64),
            up: matrix(96, 64),
            down: matrix(64, 96),
            extras: LayerExtras::default(),
        })
        .collect();
    Weights {
        embedding: matrix(VOCAB, 64),
        output_norm: vec![1.0; 64],
        output: Some(matrix(VOCAB, 64)),
        layers,
    }
}

fn quantised_block(weight_type: WeightType, seed: u64, block: usize, cols: usize) -> Vec<u8> {
    let width = (3.0 / cols as f64).sqrt();
    let random = |i: u64| (uniform(seed, block as u64 * 40 + i) * 256.0) as u8;
    let scale = |steps: f64| half::f16::from_f64(width / steps).to_le_bytes();
    let mut bytes = Vec::new();
    match weight_type {
        WeightType::Q8_0 => {
            bytes.extend(scale(127.0));
            bytes.extend((0..32).map(random));
        }
        WeightType::Q4_0 => {
            bytes.extend(scale(8.0));
            bytes.extend((0..16).map(random));
        }
        _ => {
            bytes.extend(scale(7.5));
            bytes.extend(half::f16::from_f64(-width).to_le_bytes());
            bytes.extend((0..16).map(random));
        }
    }
    bytes
}

pub fn options(block_size: usize, kv_dtype: KvDtype, threads: usize) -> EngineOptions {
    EngineOptions {
        kv_bytes: 1 << 20,
        block_size,
        kv_dtype,
        shard_count: 1,
        threads,
        step_token_max: 512,
        weights: WeightFormat::Stored,
    }
}

pub fn engine(weight_type: WeightType, options: EngineOptions) -> Engine {
    Engine::from_weights(config(), "test".into(), weights(weight_type), options).unwrap()
}

pub fn prompt(seed: u64, length: usize) -> Vec<u32> {
    (0..length)
        .map(|i| (uniform(seed, i as u64) * VOCAB as f64) as u32)
        .collect()
}

pub fn start(sequence_id: u64, prompt_token_count: usize, sampling: SamplingParams, blocks: Vec<u32>) -> SequenceStart {
    SequenceStart {
        sequence_id,
        prompt_token_count: prompt_token_count as u32,
        sampling,
        block_ids: blocks,
        prompt_token_ids: Vec::new(),
    }
}

/// A slice of given tokens.
pub fn slice(sequence_id: u64, start_position: usize, tokens: &[u32], sample: bool) -> Slice {
    Slice {
        sequence_id,
        start_position: start_position as u32,
        token_count: tokens.len() as u32,
        token_ids: tokens.to_vec(),
        appended_block_ids: Vec::new(),
        sample,
    }
}

/// A slice of the token sampled last.
pub fn next(sequence_id: u64, start_position: usize) -> Slice {
    Slice {
        sequence_id,
        start_position: start_position as u32,
        token_count: 1,
        token_ids: Vec::new(),
        appended_block_ids: Vec::new(),
        sample: true,
    }
}

pub fn plan(starts: Vec<SequenceStart>, slices: Vec<Slice>) -> StepPlan {
    StepPlan {
        placements: Vec::new(),
        starts,
        slices,
        dropped: Vec::new(),
    }
}

/// Runs one request alone to its end.
pub fn generate(engine: &mut Engine, prompt: &[u32], sampling: &SamplingParams) -> Vec<u32> {
    let blocks =
        (0..(prompt.len() + sampling.max_tokens as usize).div_ceil(engine.layout().block_size) as u32).collect();
    let mut step = plan(
        vec![start(1, prompt.len(), sampling.clone(), blocks)],
        vec![slice(1, 0, prompt, true)],
    );
    let (mut tokens, mut position) = (Vec::new(), prompt.len());
    loop {
        let result = engine.step(&step).unwrap().results.remove(0);
        tokens.push(result.token.unwrap().token_id);
        if result.outcome == SliceOutcome::Stopped {
            engine.reset();
            return tokens;
        }
        step = plan(Vec::new(), vec![next(1, position)]);
        position += 1;
    }
}
