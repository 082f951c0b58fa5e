//! The conformance suite on a GPU, the products of cuBLASLt, and a model beside the CPU engine.

use crate::SimtDevice;
use crate::suite::{CASES, Harness, Random};
use kvasir_cuda::driver::CudaDevice;
use kvasir_cuda::ops::Gemm;
use kvasir_cuda::{CudaBackend, CudaOptions, Device, Division, KvMemory};
use kvasir_engine::{
    Engine, EngineOptions, KvDtype, SamplingParams, SequenceStart, Slice, StepPlan, WeightFormat, Weights, synthetic,
};
use kvasir_kernels::Cpu;
use kvasir_model::{ModelConfig, ModelSource};
use std::path::Path;
use std::sync::Arc;

/// Runs every case with `seeds` seeds, prints a line for each, and fails when one did.
///
/// # Errors
/// What differs; all cases run first.
pub fn check(own: &Arc<CudaDevice>, fastest: &Arc<CudaDevice>, seeds: u64, model: Option<&Path>) -> Result<(), String> {
    println!("device: {}", own.description());
    let mut failures = 0;
    let mut report = |name: &str, result: Result<(), String>| match result {
        Ok(()) => println!("ok      {name}"),
        Err(what) => {
            failures += 1;
            println!("FAILED  {name}: {what}");
        }
    };
    for (name, case) in CASES {
        let all = (1..=seeds).try_for_each(|seed| {
            case(&mut Harness::poisoned(&**own, seed)).map_err(|what| format!("{what}; seed {seed}"))
        });
        report(name, all);
    }
    report("products of cuBLASLt beside the own ones", products(own, fastest));
    for (name, device, division) in [
        ("own products, deterministic", own, Division::DETERMINISTIC),
        ("fastest products, partitions", fastest, Division::FAST),
    ] {
        report(
            &format!("256 greedy tokens beside the CPU engine, {name}"),
            greedy(model, device, division),
        );
    }
    match failures {
        0 => Ok(()),
        count => Err(format!("{count} cases failed on {}", own.description())),
    }
}

/// The suite on a simulated GPU.
///
/// # Errors
/// The first case that differs.
pub fn check_simulated(seeds: u64) -> Result<(), String> {
    for (name, case) in CASES {
        (1..=seeds).try_for_each(|seed| {
            let device = SimtDevice::new(64 << 20, seed);
            case(&mut Harness::checked(&device, seed)).map_err(|what| format!("{name}: {what}; seed {seed}"))
        })?;
        println!("ok      {name}");
    }
    Ok(())
}

fn products(own: &CudaDevice, fastest: &CudaDevice) -> Result<(), String> {
    let mut random = Random::new(1);
    for [rows, cols, inner] in [[1, 4096, 4096], [64, 6144, 4096], [300, 1000, 576]] {
        let (x, weights) = (random.rounded(rows * inner, 1.0), random.rounded(cols * inner, 1.0));
        let mut results = Vec::new();
        for device in [own, fastest] {
            let h = Harness::poisoned(device, 0);
            let out = h.output(rows * cols * 4)?;
            let op = Gemm {
                x: &h.bf16s(&x)?,
                weights: &h.bf16s(&weights)?,
                out: &out,
                is_f32: true,
                rows,
                cols,
                inner,
            };
            device.product(&op).map_err(|error| error.to_string())?;
            results.push(h.read_f32s(&out, rows * cols)?);
        }
        // Both sum products of bf16 in f32, in different orders; a sum of n normal numbers is about the root of n large.
        let tolerance = (inner as f32).sqrt() * inner as f32 * 2f32.powi(-22);
        if let Some(at) = (0..rows * cols).find(|i| {
            let difference = (results[0][*i] - results[1][*i]).abs();
            difference.is_nan() || difference > tolerance
        }) {
            return Err(format!(
                "[{rows}, {cols}, {inner}] element {at}: {} and {}",
                results[0][at], results[1][at]
            ));
        }
    }
    Ok(())
}

/// A model's sizes and weights: a file's, or random ones in the shape of SmolLM2-135M.
fn model_of(path: Option<&Path>) -> Result<(ModelConfig, Weights), String> {
    let Some(path) = path else {
        return synthetic::model("smollm2:bf16").map_err(|error| error.to_string());
    };
    let source = ModelSource::open(path).map_err(|error| error.to_string())?;
    let weights = Weights::load(&source, WeightFormat::Bf16, &mut |_, _| {}).map_err(|error| error.to_string())?;
    Ok((source.config().clone(), weights))
}

/// Tokens that a model says after a prompt on the device and on the CPU, bf16 both. Near ties may fall apart, and then all after them: what is
/// asked is that the CPU's choice was within reach at the first place where they differ.
fn greedy(model: Option<&Path>, device: &Arc<CudaDevice>, division: Division) -> Result<(), String> {
    const TOKENS: u32 = 256;
    const NEAR: f32 = 0.1;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let options = EngineOptions {
        kv_bytes: 256 << 20,
        block_size: 32,
        kv_dtype: KvDtype::Bf16,
        shard_count: 1,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        step_token_max: 2048,
        weights: WeightFormat::Bf16,
    };
    let (config, weights) = model_of(model)?;
    let on_device = CudaOptions {
        kv_memory: KvMemory::Bytes(options.kv_bytes),
        block_size: options.block_size,
        division,
        rows_max: options.step_token_max,
        graphs: true,
    };
    let transfers: Arc<dyn Device> = Arc::new(device.beside().map_err(|error| text(&error))?);
    let shared: Arc<dyn Device> = Arc::clone(device) as Arc<dyn Device>;
    let backend =
        CudaBackend::new(shared, transfers, config.clone(), &weights, on_device).map_err(|error| text(&error))?;
    let vocab = config.vocab_size as u64;
    let mut cpu =
        Engine::from_weights(config.clone(), "check".into(), weights, options).map_err(|error| text(&error))?;
    let sampler = Arc::new(Cpu::new(1).map_err(|error| text(&error))?);
    let mut gpu = Engine::with_backend(sampler, Box::new(backend), config, "check".into(), options)
        .map_err(|error| text(&error))?;
    let mut random = Random::new(3);
    let prompt: Vec<u32> = (0..96).map(|_| (random.bits() % vocab) as u32).collect();
    let [expected, found] = [
        generate(&mut cpu, &prompt, TOKENS)?,
        generate(&mut gpu, &prompt, TOKENS)?,
    ];
    let Some(at) = expected.iter().zip(&found).position(|(a, b)| a.0 != b.0) else {
        println!("        all {TOKENS} tokens are the same");
        return Ok(());
    };
    let reach = found[at].1
        - found[at]
            .2
            .iter()
            .find(|(token, _)| *token == expected[at].0)
            .map_or(f32::MIN, |x| x.1);
    println!("        the first {at} tokens are the same; there the CPU's token is {reach} nats below");
    if reach <= NEAR {
        Ok(())
    } else {
        Err(format!("token {at} differs by {reach} nats"))
    }
}

type Chosen = (u32, f32, Vec<(u32, f32)>);

fn generate(engine: &mut Engine, prompt: &[u32], count: u32) -> Result<Vec<Chosen>, String> {
    let length = prompt.len() as u32;
    let mut chosen = Vec::new();
    for index in 0..count {
        let first = index == 0;
        let slice = Slice {
            sequence_id: 1,
            start_position: if first { 0 } else { length + index - 1 },
            token_count: if first { length } else { 1 },
            token_ids: if first { prompt.to_vec() } else { Vec::new() },
            appended_block_ids: Vec::new(),
            sample: true,
        };
        let start = SequenceStart {
            sequence_id: 1,
            prompt_token_count: length,
            sampling: SamplingParams {
                max_tokens: count + 1,
                logprobs: true,
                top_logprobs: 5,
                ..SamplingParams::default()
            },
            block_ids: (0..(length + count).div_ceil(32)).collect(),
            prompt_token_ids: Vec::new(),
        };
        let plan = StepPlan {
            starts: if first { vec![start] } else { Vec::new() },
            slices: vec![slice],
            ..StepPlan::default()
        };
        let output = engine.step(&plan).map_err(|error| error.to_string())?;
        let token = output
            .results
            .into_iter()
            .next()
            .and_then(|result| result.token)
            .ok_or("no token")?;
        let top = token
            .top_logprobs
            .iter()
            .map(|top| (top.token_id, top.logprob))
            .collect();
        chosen.push((token.token_id, token.logprob.unwrap_or(f32::NAN), top));
    }
    Ok(chosen)
}
