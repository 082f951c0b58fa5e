//! A command from beginning to end.

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::gpus::Gpus;
use crate::{
    bench_codec, bench_engine, bench_pull, bench_swap, certificates, generate, inspect, quality, serve, store_role,
};

/// Runs what the process was asked for, on GPUs from there; flags in, exit code out.
pub fn run(gpus: &dyn Gpus) -> ExitCode {
    kvasir_kernels::keep_freed_memory();
    tracing_subscriber::fmt()
        .json()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("KVASIR_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .init();
    let outcome = match Cli::parse().command {
        Command::Serve(flags) => serve::serve(flags, gpus),
        Command::Inspect { model } => inspect::inspect(&model),
        Command::Generate(flags) => generate::generate(&flags, gpus),
        Command::BenchEngine(flags) => bench_engine::bench_engine(&flags),
        Command::BenchCodec(flags) => bench_codec::bench_codec(&flags),
        Command::Quality(flags) => quality::quality(&flags),
        Command::QualityCodec(flags) => quality::coding::quality_codec(&flags),
        Command::CodecProfile(flags) => quality::profile::codec_profile(&flags),
        Command::Certificates(flags) => certificates::certificates(&flags),
        Command::Store(flags) => store_role::serve_store(flags),
        Command::BenchPull(what) => bench_pull::run(what),
        Command::BenchSwap(flags) => bench_swap::run(&flags),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
