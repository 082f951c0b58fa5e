//! The sidecar of a Kvasir worker.
#![forbid(unsafe_code)]

mod bench_pull;
mod cli;
mod device;
mod errors;
mod exports;
mod fetch;
mod fetches;
mod frames;
mod generate;
mod http2;
mod kernel_service;
mod memory;
mod plan_from_wire;
mod proto;
mod serve;
mod state;
mod stats;
mod telemetry;
mod ticket;
mod transfer_service;

use std::process::ExitCode;

use clap::Parser;
use kvasir_engine::bench::{self, BenchOptions};
use kvasir_model::ModelSource;

use crate::cli::{BenchEngineFlags, Cli, Command};
use crate::serve::Fatal;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .json()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("KVASIR_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .init();
    let outcome = match Cli::parse().command {
        Command::Serve(flags) => serve::serve(flags),
        Command::Inspect { model } => inspect(&model),
        Command::Generate(flags) => generate::generate(&flags),
        Command::BenchEngine(flags) => bench_engine(&flags),
        Command::BenchPull(what) => bench_pull::run(what),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn inspect(path: &std::path::Path) -> Result<(), Fatal> {
    let source = ModelSource::open(path)?;
    let config = source.config();
    println!(
        "{}",
        serde_json::json!({
            "architecture": config.architecture,
            "revision": source.revision(),
            "weight_bytes": source.total_bytes(),
            "layers": config.layer_count,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "heads": config.head_count,
            "kv_heads": config.kv_head_count,
            "head_size": config.head_size,
            "vocab_size": config.vocab_size,
            "context_length": config.context_length,
            "rope": config.rope.describe(),
            "tied_embeddings": config.tied_embeddings,
            "eos_token_ids": config.eos_token_ids,
        })
    );
    Ok(())
}

fn bench_engine(flags: &BenchEngineFlags) -> Result<(), Fatal> {
    let mut engine = serve::load_engine(&flags.engine, &mut |_, _| {})?;
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
