//! `kvasir-store-bench`: what the store holds after kills, and how fast and how large it is. Prints JSON.
#![forbid(unsafe_code)]

mod blocks;
mod crash;
mod index;
mod speed;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "kvasir-store-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kill a process that writes again and again, and look whether everything it answered is there
    CrashLoop(crash::Flags),
    /// The process that is killed: writes until then, and prints what was acknowledged
    CrashChild {
        /// Its store
        directory: PathBuf,
        /// First block number that was not used
        first: u64,
    },
    /// Bytes and time of the index
    Index {
        /// Keys in it
        #[arg(long, default_value_t = 10_000_000)]
        blocks: u64,
    },
    /// GB/s of each tier beside what memory and disk give without a store
    Speed(speed::Flags),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::CrashLoop(flags) => crash::parent(&flags),
        Command::CrashChild { directory, first } => crash::child(&directory, first),
        Command::Index { blocks } => index::measure(blocks),
        Command::Speed(flags) => speed::measure(&flags),
    };
    match outcome {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
