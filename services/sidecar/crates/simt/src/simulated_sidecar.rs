//! `kvasir-sidecar-simulated`: the sidecar, whose GPUs are simulated. Its command line is that of `kvasir-sidecar`; tests and dry runs use it.

use kvasir_sidecar::run::run;
use kvasir_simt::Simulated;
use std::process::ExitCode;

fn main() -> ExitCode {
    run(&Simulated)
}
