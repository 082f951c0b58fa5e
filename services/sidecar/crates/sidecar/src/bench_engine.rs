//! `kvasir-sidecar bench-engine`: decode, prefill and attention speed, and shares of what the machine can do.

use kvasir_engine::bench::{self, BenchOptions};
use kvasir_engine::synthetic;

use crate::cli::BenchEngineFlags;
use crate::serve::{Fatal, engine_options, load_engine};

/// Names a model of random weights where otherwise a path stands, e.g. `random:llama-1b:bf16`.
const RANDOM: &str = "random:";

/// Measures and prints JSON.
///
/// # Errors
/// What keeps the model from loading, or a context or prompt that does not fit.
pub fn bench_engine(flags: &BenchEngineFlags) -> Result<(), Fatal> {
    let path = flags.engine.model.to_string_lossy();
    let mut engine = match path.strip_prefix(RANDOM) {
        Some(name) => synthetic::engine(name, engine_options(&flags.engine))?,
        None => load_engine(&flags.engine, &mut |_, _| {})?,
    };
    let options = BenchOptions {
        decode_batches: flags.batches.clone(),
        decode_context: flags.context,
        decode_steps: flags.steps,
        prefill_lengths: flags.prompts.clone(),
        attention_contexts: flags.attention.clone(),
        repetitions: flags.repetitions,
    };
    println!("{}", serde_json::to_string(&bench::run(&mut engine, &options)?)?);
    Ok(())
}
