//! `kvasir-gpu check|bench`: the kernels on a real GPU. `npm run gpu` calls it.

use kvasir_cuda::driver::{CudaDevice, Products};
use kvasir_simt::gpu;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str = "kvasir-gpu check|bench [--kernels FOLDER] [--device N] [--seeds N] [--model FOLDER]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("kvasir-gpu: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().ok_or(USAGE)?;
    let mut kernels = std::env::var_os("KVASIR_KERNELS").map_or_else(|| PathBuf::from(".cache/kernels"), PathBuf::from);
    let (mut ordinal, mut seeds, mut model) = (0, 5, None::<PathBuf>);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or(format!("{flag} without a value; {USAGE}"))?;
        let number = || value.parse().map_err(|_| format!("{flag} is {value}; use a number"));
        match flag.as_str() {
            "--kernels" => kernels = value.into(),
            "--model" => model = Some(value.into()),
            "--device" => ordinal = number()?,
            "--seeds" => seeds = number()?,
            _ => return Err(format!("there is no {flag}; {USAGE}")),
        }
    }
    let open = |products| {
        let device = CudaDevice::open(ordinal, &kernels, products);
        device.map(Arc::new).map_err(|error| error.to_string())
    };
    match command.as_str() {
        "check" => gpu::check(
            &open(Products::Deterministic)?,
            &open(Products::Fastest)?,
            seeds as u64,
            model.as_deref(),
        ),
        "bench" => gpu::bench(&*open(Products::Fastest)?),
        _ => Err(format!("there is no command {command}; {USAGE}")),
    }
}
