//! Speed of the engine on a model: `cargo run --release --example model -- MODEL [threads] [token ids to continue, comma separated]`.

use kvasir_engine::{
    Engine, EngineOptions, KvDtype, SamplingParams, SequenceStart, Slice, SliceOutcome, StepPlan, WeightFormat, bench,
};
use kvasir_model::ModelSource;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let source = ModelSource::open(Path::new(
        arguments.first().ok_or("name a model directory or GGUF file")?,
    ))?;
    let options = EngineOptions {
        kv_bytes: 1 << 30,
        block_size: 32,
        kv_dtype: KvDtype::Bf16,
        shard_count: 1,
        threads: arguments.get(1).map_or(Ok(2), |text| text.parse())?,
        step_token_max: 4096,
        weights: WeightFormat::Stored,
    };
    let started = std::time::Instant::now();
    let mut engine = Engine::load(&source, options, &mut |_, _| {})?;
    println!(
        "loaded in {} ms, {}",
        started.elapsed().as_millis(),
        engine.description()
    );
    match arguments.get(2) {
        Some(prompt) => {
            let prompt = prompt.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
            println!("{:?}", generate(&mut engine, &prompt, &source.config().eos_token_ids)?);
        }
        None => println!("{:#?}", bench::run(&mut engine, &bench::BenchOptions::default())?),
    }
    Ok(())
}

fn generate(engine: &mut Engine, prompt: &[u32], stop: &[u32]) -> Result<Vec<u32>, Box<dyn std::error::Error>> {
    let sampling = SamplingParams {
        max_tokens: 128,
        stop_token_ids: stop.to_vec(),
        ..SamplingParams::default()
    };
    let count = prompt.len() as u32;
    let start = SequenceStart {
        sequence_id: 1,
        prompt_token_count: count,
        sampling,
        block_ids: (0..(count + 128).div_ceil(32)).collect(),
        prompt_token_ids: Vec::new(),
    };
    let mut slice = Slice {
        sequence_id: 1,
        token_count: count,
        token_ids: prompt.to_vec(),
        sample: true,
        ..Slice::default()
    };
    let mut plan = StepPlan {
        placements: Vec::new(),
        starts: vec![start],
        slices: vec![slice.clone()],
        dropped: Vec::new(),
    };
    let mut tokens = Vec::new();
    loop {
        let output = engine.step(&plan)?;
        let result = output.results.first().ok_or("no result")?;
        tokens.extend(result.token.iter().map(|token| token.token_id));
        if result.outcome == SliceOutcome::Stopped {
            return Ok(tokens);
        }
        slice = Slice {
            sequence_id: 1,
            start_position: slice.start_position + slice.token_count,
            token_count: 1,
            sample: true,
            ..Slice::default()
        };
        plan = StepPlan {
            placements: Vec::new(),
            slices: vec![slice.clone()],
            ..StepPlan::default()
        };
    }
}
