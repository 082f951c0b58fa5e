//! `kvasir-gpu check|bench|cluster`: kernels, models and sidecars on a real GPU, or, to try this program itself, on a simulated one.
//! `scripts/gpu-run.sh` calls it.

use kvasir_cuda::Device;
use kvasir_cuda::driver::{CudaDevice, Products};
use kvasir_simt::{SimtDevice, gpu};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str = "kvasir-gpu check|bench|cluster [--simulate] [--kernels FOLDER] [--device N] [--seeds N] [--model FOLDER] [--sidecar FILE]";
/// Of a simulated GPU; address space only.
const SIMULATED_BYTES: usize = 256 << 20;

struct Options {
    kernels: PathBuf,
    ordinal: usize,
    seeds: usize,
    model: Option<PathBuf>,
    sidecar: PathBuf,
    simulate: bool,
}

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
    let options = options(arguments)?;
    let open = |products| {
        let device = CudaDevice::open(options.ordinal, &options.kernels, products);
        device.map(Arc::new).map_err(|error| error.to_string())
    };
    match (command.as_str(), options.simulate) {
        ("check", true) => gpu::check_simulated(options.seeds as u64),
        ("check", false) => gpu::check(
            &open(Products::Deterministic)?,
            &open(Products::Fastest)?,
            options.seeds as u64,
            options.model.as_deref(),
        ),
        ("bench", true) => {
            let device = Arc::new(SimtDevice::new(SIMULATED_BYTES, 1));
            let transfers = Arc::new(device.beside());
            let device: Arc<dyn Device> = device;
            gpu::model_bench(&device, transfers, &gpu::ModelSize::tiny(), [1e12, 1e15])
        }
        ("bench", false) => {
            let device = open(Products::Fastest)?;
            let rates = gpu::bench(&device)?;
            gpu::model_on_gpu(&device, rates)
        }
        ("cluster", simulate) => {
            let size = if simulate {
                gpu::ClusterSize::small()
            } else {
                gpu::ClusterSize::large()
            };
            gpu::cluster(&options.sidecar, &options.kernels, &size)
        }
        _ => Err(format!("there is no command {command}; {USAGE}")),
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.to_owned()));
    let mut options = Options {
        kernels: std::env::var_os("KVASIR_KERNELS").map_or_else(|| PathBuf::from(".cache/kernels"), PathBuf::from),
        ordinal: 0,
        seeds: 5,
        model: None,
        sidecar: beside.unwrap_or_default().join("kvasir-sidecar"),
        simulate: false,
    };
    while let Some(flag) = arguments.next() {
        if flag == "--simulate" {
            options.simulate = true;
            continue;
        }
        let value = arguments.next().ok_or(format!("{flag} without a value; {USAGE}"))?;
        let number = || value.parse().map_err(|_| format!("{flag} is {value}; use a number"));
        match flag.as_str() {
            "--kernels" => options.kernels = value.into(),
            "--model" => options.model = Some(value.into()),
            "--sidecar" => options.sidecar = value.into(),
            "--device" => options.ordinal = number()?,
            "--seeds" => options.seeds = number()?,
            _ => return Err(format!("there is no {flag}; {USAGE}")),
        }
    }
    Ok(options)
}
