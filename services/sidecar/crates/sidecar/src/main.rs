//! `kvasir-sidecar`: flags in, exit code out.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use kvasir_sidecar::gpus::OfTheDriver;
use kvasir_sidecar::run::run;

fn main() -> ExitCode {
    run(&OfTheDriver)
}
