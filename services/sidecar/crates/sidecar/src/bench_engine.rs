//! `kvasir-sidecar bench-engine`: decode and prefill speed.

use kvasir_engine::bench::{self, BenchOptions};

use crate::cli::BenchEngineFlags;
use crate::serve::{Fatal, load_engine};

/// Measures and prints JSON.
///
/// # Errors
/// What keeps the model from loading, or a context or prompt that does not fit.
pub fn bench_engine(flags: &BenchEngineFlags) -> Result<(), Fatal> {
    let mut engine = load_engine(&flags.engine, &mut |_, _| {})?;
    let options = BenchOptions {
        decode_batches: flags.batches.clone(),
        decode_context: flags.context,
        prefill_lengths: flags.prompts.clone(),
        repetitions: flags.repetitions,
        ..BenchOptions::default()
    };
    println!("{}", serde_json::to_string(&bench::run(&mut engine, &options)?)?);
    Ok(())
}
