//! Whole models beside the CPU engine, and beside themselves in other batches.

use super::check::Report;
use crate::suite::Random;
use kvasir_cuda::driver::Products;
use kvasir_cuda::{CudaBackend, CudaOptions, Division, KvMemory};
use kvasir_engine::{
    Engine, EngineOptions, KvDtype, SamplingParams, SequenceStart, Slice, StepPlan, WeightFormat, Weights, synthetic,
};
use kvasir_kernels::Cpu;
use kvasir_model::{ModelConfig, ModelSource};
use kvasir_sidecar::gpus::Gpus;
use std::path::Path;
use std::sync::Arc;

const BLOCK: u32 = 32;
const PROMPT: usize = 96;
/// Nats within which two tokens count as a near tie.
const NEAR: f32 = 0.1;
/// Sequences that generate beside the one that is looked at.
const OTHERS: usize = 7;

/// Compares the model with the CPU engine, by both kinds of products, and with itself in a batch.
///
/// # Errors
/// When the model cannot be had; what differs is reported.
pub(super) fn check(
    gpus: &dyn Gpus,
    kernels: &Path,
    model: &Path,
    tokens: u32,
    report: &mut Report,
) -> Result<(), String> {
    let name = model.display();
    let (config, weights) = model_of(model)?;
    let mut random = Random::new(3);
    let vocab = config.vocab_size as u64;
    let prompt: Vec<u32> = (0..PROMPT).map(|_| (random.bits() % vocab) as u32).collect();
    let blocks_each = (PROMPT as u32 + tokens).div_ceil(BLOCK);
    let token_bytes = config.layer_count * 2 * config.kv_head_count * config.head_size * 2;
    let options = EngineOptions {
        kv_bytes: (blocks_each * BLOCK) as u64 * (OTHERS as u64 + 1) * token_bytes as u64,
        block_size: BLOCK as usize,
        kv_dtype: KvDtype::Bf16,
        shard_count: 1,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        step_token_max: 2048,
        weights: WeightFormat::Bf16,
    };
    let mut on_device = Vec::new();
    for (how, products, division) in [
        ("fastest", Products::Fastest, Division::FAST),
        ("deterministic", Products::Deterministic, Division::DETERMINISTIC),
    ] {
        let gpu = gpus.open(0, kernels, products).map_err(text)?;
        let how_to_run = CudaOptions {
            kv_memory: KvMemory::Bytes(options.kv_bytes),
            block_size: options.block_size,
            division,
            rows_max: options.step_token_max,
            graphs: true,
        };
        let backend = CudaBackend::new(gpu.engine, gpu.transfers, config.clone(), &weights, how_to_run);
        let cpu = Arc::new(Cpu::new(1).map_err(text)?);
        let backend = Box::new(backend.map_err(text)?);
        let engine = Engine::with_backend(cpu, backend, config.clone(), "check".into(), options);
        on_device.push((how, engine.map_err(text)?));
    }
    let mut cpu = Engine::from_weights(config.clone(), "check".into(), weights, options).map_err(text)?;
    let logits = cpu.logits(&prompt, PROMPT).map_err(text)?;
    let expected = generate(&mut cpu, &[&prompt], tokens, PROMPT)?.swap_remove(0);
    drop(cpu);
    for (how, engine) in &mut on_device {
        let found = engine.logits(&prompt, PROMPT).map_err(text)?;
        report.add(
            &format!("logits of {name} beside the CPU engine, {how}"),
            same_logits(&found, &logits, config.layer_count),
        );
        let found = generate(engine, &[&prompt], tokens, PROMPT)?.swap_remove(0);
        report.add(
            &format!("{tokens} greedy tokens of {name} beside the CPU engine, {how}"),
            same_tokens(&found, &expected),
        );
        if *how == "deterministic" {
            let others: Vec<Vec<u32>> = (0..OTHERS)
                .map(|i| (0..PROMPT - 9 * i).map(|_| (random.bits() % vocab) as u32).collect())
                .collect();
            let batch: Vec<&[u32]> = others.iter().map(Vec::as_slice).chain([&prompt[..]]).collect();
            // Chunks that no prompt's length is a multiple of.
            let among = generate(engine, &batch, tokens, 41)?.swap_remove(OTHERS);
            let same = match found.iter().zip(&among).position(|(a, b)| a != b) {
                None => Ok("all bits are the same".into()),
                Some(at) => Err(format!(
                    "token {at} is {:?} in a batch, {:?} alone",
                    among[at], found[at]
                )),
            };
            report.add(
                &format!("{tokens} tokens of {name} alone and among {OTHERS} others, {how}"),
                same,
            );
        }
    }
    Ok(())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A model's sizes and weights: a folder's, or random ones by a name that is no folder.
fn model_of(model: &Path) -> Result<(ModelConfig, Weights), String> {
    if !model.is_dir() {
        return synthetic::model(&format!("{}:bf16-pairs", model.display())).map_err(text);
    }
    let source = ModelSource::open(model).map_err(text)?;
    let weights = Weights::load(&source, WeightFormat::Bf16, &mut |_, _| {}).map_err(text)?;
    Ok((source.config().clone(), weights))
}

/// Both round activations to bf16 before each product, but not always to the same side: about eight roundings a layer of half a step each,
/// which add up as random numbers do.
fn same_logits(found: &[f32], expected: &[f32], layer_count: usize) -> Result<String, String> {
    let tolerance = (8.0 * layer_count as f64).sqrt() / 512.0;
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = found.iter().zip(expected);
    let apart = norm(&mut pairs.map(|(a, b)| f64::from(a - b))) / norm(&mut expected.iter().map(|x| f64::from(*x)));
    let told = format!("relative difference {apart:.1e} over {} logits", expected.len());
    if found.len() == expected.len() && apart <= tolerance {
        Ok(told)
    } else {
        Err(format!("{told}, allowed are {tolerance:.1e}"))
    }
}

/// Near ties may fall apart, and then all after them: what is asked is that the CPU's choice was within reach at the first place where they
/// differ.
fn same_tokens(found: &[Chosen], expected: &[Chosen]) -> Result<String, String> {
    let Some(at) = expected.iter().zip(found).position(|(a, b)| a.token != b.token) else {
        return Ok("all are the same".into());
    };
    let wanted = found[at].top.iter().find(|(token, _)| *token == expected[at].token);
    let reach = found[at].logprob - wanted.map_or(f32::MIN, |(_, logprob)| *logprob);
    if reach <= NEAR {
        Ok(format!(
            "the first {at} are the same, then a tie within {reach:.3} nats"
        ))
    } else {
        Err(format!("token {at} differs by {reach} nats"))
    }
}

/// A token, its log-probability, and the most likely ones in its place.
#[derive(Debug, Clone, PartialEq)]
struct Chosen {
    token: u32,
    logprob: f32,
    top: Vec<(u32, f32)>,
}

/// Generates after each prompt, all in one batch, prompts in chunks.
fn generate(engine: &mut Engine, prompts: &[&[u32]], count: u32, chunk: usize) -> Result<Vec<Vec<Chosen>>, String> {
    let mut all: Vec<Vec<Chosen>> = vec![Vec::new(); prompts.len()];
    let mut positions = vec![0; prompts.len()];
    let each = (PROMPT as u32 + count).div_ceil(BLOCK);
    let starts = prompts.iter().enumerate().map(|(id, prompt)| SequenceStart {
        sequence_id: id as u64,
        prompt_token_count: prompt.len() as u32,
        sampling: SamplingParams {
            max_tokens: count + 1,
            logprobs: true,
            top_logprobs: 5,
            ..SamplingParams::default()
        },
        block_ids: (id as u32 * each..(id as u32 + 1) * each).collect(),
        prompt_token_ids: Vec::new(),
    });
    let mut starts: Vec<SequenceStart> = starts.collect();
    while all.iter().any(|chosen| chosen.len() < count as usize) {
        let mut slices = Vec::new();
        for (id, prompt) in prompts.iter().enumerate() {
            let begin: usize = positions[id];
            if all[id].len() == count as usize {
                continue;
            }
            let ids = &prompt[begin.min(prompt.len())..prompt.len().min(begin + chunk)];
            positions[id] = begin + ids.len().max(1);
            slices.push(Slice {
                sequence_id: id as u64,
                start_position: begin as u32,
                token_count: ids.len().max(1) as u32,
                token_ids: ids.to_vec(),
                appended_block_ids: Vec::new(),
                sample: positions[id] >= prompt.len(),
            });
        }
        let plan = StepPlan {
            starts: std::mem::take(&mut starts),
            slices,
            ..StepPlan::default()
        };
        for result in engine.step(&plan).map_err(text)?.results {
            let Some(token) = result.token else { continue };
            let top = token.top_logprobs.iter().map(|top| (top.token_id, top.logprob));
            all[result.sequence_id as usize].push(Chosen {
                token: token.token_id,
                logprob: token.logprob.unwrap_or(f32::NAN),
                top: top.collect(),
            });
        }
    }
    let plan = StepPlan {
        dropped: (0..prompts.len() as u64).collect(),
        ..StepPlan::default()
    };
    engine.step(&plan).map_err(text)?;
    Ok(all)
}
