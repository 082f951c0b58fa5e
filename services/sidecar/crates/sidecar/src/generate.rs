//! `kvasir-sidecar generate`: the engine without a worker, for comparisons with other implementations.

use std::io::Write;

use kvasir_engine::{Engine, SamplingParams, SequenceStart, Slice, SliceOutcome, StepPlan};

use crate::cli::GenerateFlags;
use crate::gpus::Gpus;
use crate::loading::load_engine_on;
use crate::serve::Fatal;

/// One sequence on its way.
struct Running {
    tokens: Vec<u32>,
    position: usize,
    generated: Vec<u32>,
    done: bool,
}

/// Runs and prints `{"outputs": [[...]]}`.
///
/// # Errors
/// What keeps the model from loading or a step from running.
pub fn generate(flags: &GenerateFlags, gpus: &dyn Gpus) -> Result<(), Fatal> {
    let mut engine = load_engine_on(&flags.engine, gpus, &mut |_, _| {})?.engine;
    if let Some(path) = &flags.logits_out {
        let logits = engine.logits(&flags.tokens, flags.chunk)?;
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for value in logits {
            file.write_all(&value.to_le_bytes())?;
        }
        file.flush()?;
        engine.reset();
    }
    let prompts: Vec<Vec<u32>> = match &flags.batch {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => vec![flags.tokens.clone()],
    };
    let outputs = run(&mut engine, prompts, flags.max_tokens, flags.chunk)?;
    println!("{}", serde_json::json!({ "outputs": outputs }));
    Ok(())
}

/// Greedy tokens of each prompt. Sequence `i` begins `i` steps late, so that prefills and decodes mix; prompts go in chunks.
fn run(engine: &mut Engine, prompts: Vec<Vec<u32>>, max_tokens: u32, chunk: usize) -> Result<Vec<Vec<u32>>, Fatal> {
    let block_size = engine.layout().block_size;
    let mut next_block = 0;
    let mut starts = Vec::new();
    let mut running = Vec::new();
    for (index, tokens) in prompts.into_iter().enumerate() {
        if tokens.is_empty() {
            return Err(format!("prompt {index} is empty; give at least one token").into());
        }
        let blocks = (tokens.len() + max_tokens as usize).div_ceil(block_size) as u32;
        starts.push(SequenceStart {
            sequence_id: index as u64,
            prompt_token_count: tokens.len() as u32,
            sampling: SamplingParams {
                max_tokens,
                ..SamplingParams::default()
            },
            block_ids: (next_block..next_block + blocks).collect(),
            prompt_token_ids: Vec::new(),
        });
        next_block += blocks;
        running.push(Running {
            tokens,
            position: 0,
            generated: Vec::new(),
            done: false,
        });
    }
    if next_block > engine.pool().block_count() {
        let have = engine.pool().block_count();
        return Err(format!("the prompts need {next_block} blocks, the pool has {have}; raise --kv-bytes").into());
    }
    let mut step = 0;
    while running.iter().any(|sequence| !sequence.done) {
        let mut plan = StepPlan::default();
        if step == 0 {
            plan.starts = std::mem::take(&mut starts);
        }
        for (index, sequence) in running
            .iter_mut()
            .enumerate()
            .filter(|(index, s)| !s.done && *index <= step)
        {
            let left = sequence.tokens.len().saturating_sub(sequence.position);
            let count = left.min(chunk).max(1);
            let token_ids = if left > 0 {
                sequence.tokens[sequence.position..sequence.position + count].to_vec()
            } else {
                Vec::new()
            };
            plan.slices.push(Slice {
                sequence_id: index as u64,
                start_position: sequence.position as u32,
                token_count: count as u32,
                token_ids,
                appended_block_ids: Vec::new(),
                sample: left <= count,
            });
            sequence.position += count;
        }
        for result in engine.step(&plan)?.results {
            let sequence = &mut running[result.sequence_id as usize];
            sequence.generated.extend(result.token.map(|token| token.token_id));
            sequence.done = result.outcome == SliceOutcome::Stopped;
        }
        step += 1;
    }
    Ok(running.into_iter().map(|sequence| sequence.generated).collect())
}
