//! The engine beside transformers on recorded models: fixtures of `models/oracle/record.py`, one folder each.
//!
//! Tolerance: logits are of order 1 to 10 and both sides compute in f32 over sums of at most 96 terms, in two layers; their roundings differ by
//! some 1e-6, a wrong rotation, permutation or block by more than 0.1.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{generate, next, plan, slice, start};
use kvasir_engine::{Engine, EngineOptions, KvDtype, SamplingParams, SliceOutcome, WeightFormat};
use kvasir_model::ModelSource;

const TOLERANCE: f32 = 1e-3;
const GREEDY_TOKENS: usize = 32;
const VOCAB: usize = 67;

struct Fixture {
    directory: PathBuf,
    prompts: Vec<Vec<u32>>,
    greedy: Vec<Vec<u32>>,
    /// Of the last prompt, `[tokens, vocab]`.
    logits: Vec<f32>,
}

impl Fixture {
    fn read(name: &str) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let text = std::fs::read_to_string(directory.join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        let lists = |key: &str| serde_json::from_value(expected[key].clone()).unwrap();
        let logits = std::fs::read(directory.join("logits.f32")).unwrap();
        let logits = logits
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        Self {
            prompts: lists("prompts"),
            greedy: lists("greedy"),
            logits,
            directory,
        }
    }

    /// With its matrices in f32, as transformers computes.
    fn engine(&self, kv_dtype: KvDtype, threads: usize) -> Engine {
        self.engine_with(WeightFormat::F32, kv_dtype, threads)
    }

    fn engine_with(&self, weights: WeightFormat, kv_dtype: KvDtype, threads: usize) -> Engine {
        let source = ModelSource::open(&self.directory).unwrap();
        let options = EngineOptions {
            kv_bytes: 1 << 20,
            block_size: 16,
            kv_dtype,
            shard_count: 1,
            threads,
            step_token_max: 512,
            weights,
        };
        Engine::load(&source, options, &mut |_, _| {}).unwrap()
    }

    /// Largest difference of a logit, whatever the chunks.
    fn logit_difference(&self, engine: &mut Engine, chunk: usize) -> f32 {
        let ours = engine.logits(self.prompts.last().unwrap(), chunk).unwrap();
        assert_eq!(ours.len(), self.logits.len(), "one row of logits for each token");
        assert!(ours.iter().all(|logit| logit.is_finite()));
        ours.iter()
            .zip(&self.logits)
            .map(|(ours, theirs)| (ours - theirs).abs())
            .fold(0.0, f32::max)
    }
}

fn greedy() -> SamplingParams {
    SamplingParams {
        max_tokens: GREEDY_TOKENS as u32,
        ..SamplingParams::default()
    }
}

/// All prompts at once: prompt `i` starts `3 i` steps late and goes in chunks of `chunk`, so that prefills and decodes share steps.
fn generate_together(engine: &mut Engine, prompts: &[Vec<u32>], chunk: usize) -> Vec<Vec<u32>> {
    let blocks_each = 10;
    let mut starts = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let first = i as u32 * blocks_each;
        starts.push(start(
            i as u64,
            prompt.len(),
            greedy(),
            (first..first + blocks_each).collect(),
        ));
    }
    let mut positions = vec![0; prompts.len()];
    let mut outputs = vec![Vec::new(); prompts.len()];
    let mut stopped = vec![false; prompts.len()];
    let mut step = 0;
    while stopped.contains(&false) {
        let mut slices = Vec::new();
        for (i, prompt) in prompts
            .iter()
            .enumerate()
            .filter(|(i, _)| !stopped[*i] && 3 * i <= step)
        {
            let at = positions[i];
            if at < prompt.len() {
                let end = prompt.len().min(at + chunk);
                slices.push(slice(i as u64, at, &prompt[at..end], end == prompt.len()));
                positions[i] = end;
            } else {
                slices.push(next(i as u64, at));
                positions[i] += 1;
            }
        }
        let begun = if step == 0 {
            std::mem::take(&mut starts)
        } else {
            Vec::new()
        };
        for result in engine.step(&plan(begun, slices)).unwrap().results {
            let i = result.sequence_id as usize;
            outputs[i].extend(result.token.map(|token| token.token_id));
            stopped[i] = result.outcome == SliceOutcome::Stopped;
        }
        step += 1;
    }
    engine.reset();
    outputs
}

fn agrees_with_transformers(name: &str) {
    let fixture = Fixture::read(name);
    for threads in [1, 2] {
        let mut engine = fixture.engine(KvDtype::F32, threads);
        for chunk in [1, 5, 16, 512] {
            let difference = fixture.logit_difference(&mut engine, chunk);
            assert!(
                difference < TOLERANCE,
                "{name}: a logit differs by {difference} with chunks of {chunk}"
            );
        }
        for (prompt, expected) in fixture.prompts.iter().zip(&fixture.greedy) {
            assert_eq!(expected.len(), GREEDY_TOKENS);
            assert_eq!(
                &generate(&mut engine, prompt, &greedy()),
                expected,
                "{name}: {} tokens, alone",
                prompt.len()
            );
        }
        for chunk in [7, 64] {
            let together = generate_together(&mut engine, &fixture.prompts, chunk);
            assert_eq!(together, fixture.greedy, "{name}: in one batch, chunks of {chunk}");
        }
    }
}

#[test]
fn a_tied_model_in_f32_agrees() {
    agrees_with_transformers("tied-f32");
}

#[test]
fn an_untied_model_in_f16_with_llama3_rope_agrees() {
    agrees_with_transformers("untied-llama3-f16");
}

#[test]
fn a_sharded_model_in_bf16_agrees() {
    agrees_with_transformers("sharded-bf16");
}

#[test]
fn a_gguf_file_in_q4_0_q4_1_and_q8_0_agrees_with_its_dequantised_weights() {
    agrees_with_transformers("gguf-quantised");
}

#[test]
fn a_gguf_file_of_mixed_types_with_rope_divisors_agrees() {
    agrees_with_transformers("gguf-llama3-mixed");
}

#[test]
fn a_mistral_within_its_window_agrees() {
    agrees_with_transformers("mistral-bf16");
}

#[test]
fn attention_biases_and_linear_rope_agree() {
    agrees_with_transformers("llama-biases-linear-f16");
}

#[test]
fn a_qwen2_with_yarn_agrees() {
    agrees_with_transformers("qwen2-yarn-bf16");
}

#[test]
fn a_qwen3_with_head_norms_agrees() {
    agrees_with_transformers("qwen3-f16");
}

#[test]
fn a_phi3_of_fused_projections_that_rotates_half_a_head_agrees() {
    agrees_with_transformers("phi3-partial-rope-bf16");
}

#[test]
fn a_gemma_agrees() {
    agrees_with_transformers("gemma-f16");
}

#[test]
fn a_gguf_file_of_qwen2_in_q5_0_and_q5_1_agrees_with_its_dequantised_weights() {
    agrees_with_transformers("gguf-qwen2-five-bits");
}

#[test]
fn a_gguf_file_of_qwen3_in_k_quants_agrees_with_its_dequantised_weights() {
    agrees_with_transformers("gguf-qwen3-k-quants");
}

#[test]
fn a_gguf_file_of_phi3_agrees_with_its_dequantised_weights() {
    agrees_with_transformers("gguf-phi3-fused");
}

/// Products of quantised weights with 8-bit activations: as far from exact as the rounding of activations makes them, and no further. A wrong
/// scale or nibble moves logits by their whole range.
#[test]
fn computing_on_quantised_weights_is_near_their_dequantised_values() {
    for name in [
        "gguf-quantised",
        "gguf-llama3-mixed",
        "gguf-qwen2-five-bits",
        "gguf-qwen3-k-quants",
        "gguf-phi3-fused",
    ] {
        let fixture = Fixture::read(name);
        let mut engine = fixture.engine_with(WeightFormat::Stored, KvDtype::F32, 1);
        let difference = fixture.logit_difference(&mut engine, 16);
        assert!(difference < 0.6, "{name}: a logit differs by {difference}");
        let ours = engine.logits(fixture.prompts.last().unwrap(), 16).unwrap();
        let divergence = mean_divergence(&fixture.logits, &ours, VOCAB);
        assert!(divergence < 0.01, "{name}: mean KL {divergence} nats");
    }
}

/// Rounding f32 weights to 8 bits at load costs little, and something.
#[test]
fn weights_rounded_to_8_bits_at_load_are_near() {
    let fixture = Fixture::read("tied-f32");
    let mut engine = fixture.engine_with(WeightFormat::Q8_0, KvDtype::F32, 1);
    let difference = fixture.logit_difference(&mut engine, 16);
    assert!(
        difference > TOLERANCE && difference < 0.6,
        "logits differ by {difference}"
    );
}

/// KL(theirs ‖ ours) in nats, the mean over positions.
fn mean_divergence(theirs: &[f32], ours: &[f32], vocab: usize) -> f64 {
    let rows = theirs.chunks(vocab).zip(ours.chunks(vocab));
    let total: f64 = rows
        .map(|(theirs, ours)| {
            let (p, q) = (log_softmax(theirs), log_softmax(ours));
            p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        })
        .sum();
    total / (theirs.len() / vocab) as f64
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum::<f64>().ln();
    logits.iter().map(|x| f64::from(*x) - largest - total).collect()
}

/// The comparison sees an error: KV rounded to bf16 (8 bits of mantissa) moves logits by more than the tolerance, yet by little.
#[test]
fn rounding_kv_to_bf16_is_seen_and_small() {
    let fixture = Fixture::read("tied-f32");
    let difference = fixture.logit_difference(&mut fixture.engine(KvDtype::Bf16, 1), 16);
    assert!(
        difference > TOLERANCE && difference < 0.5,
        "logits differ by {difference}"
    );
}
