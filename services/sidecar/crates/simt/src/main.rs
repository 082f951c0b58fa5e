//! `kvasir-gpu suite|check|bench|cluster|write-model`: kernels, models and sidecars on a real GPU, or, to try this program itself, on a simulated
//! one. `scripts/gpu-run.sh` calls it.

use kvasir_cuda::Division;
use kvasir_cuda::driver::{CudaDevice, Products};
use kvasir_engine::synthetic;
use kvasir_sidecar::gpus::{Gpus, OfTheDriver};
use kvasir_simt::gpu::{self, CheckSize, Clocked, ModelRun, Size};
use kvasir_simt::{SimtDevice, Simulated};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str =
    "kvasir-gpu suite|check|bench|cluster [--simulate] [--kernels FOLDER] [--seeds N] [--model FOLDER] [--sidecar FILE]
kvasir-gpu write-model --model FOLDER --shape NAME [--vocab N]";
/// Of a simulated GPU; address space only.
const SIMULATED_BYTES: usize = 256 << 20;

struct Options {
    kernels: PathBuf,
    seeds: u64,
    model: Option<PathBuf>,
    shape: String,
    vocab: Option<usize>,
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
    let gpus: &dyn Gpus = if options.simulate { &Simulated } else { &OfTheDriver };
    match command.as_str() {
        "suite" => gpu::suite(gpus, &options.kernels, &check_size(&options)),
        "check" => gpu::check(gpus, &options.kernels, &check_size(&options)),
        "bench" => bench(&options),
        "cluster" => {
            let size = match options.simulate {
                true => gpu::ClusterSize::small(),
                false => gpu::ClusterSize::large(),
            };
            gpu::cluster(&options.sidecar, &options.kernels, &size)
        }
        "write-model" => {
            let folder = options.model.ok_or("write-model needs --model FOLDER")?;
            let unknown = || format!("there is no shape {}", options.shape);
            let mut config = synthetic::config(&options.shape).ok_or_else(unknown)?;
            config.vocab_size = options.vocab.unwrap_or(config.vocab_size);
            gpu::write_model(&folder, &config)
        }
        _ => Err(format!("there is no command {command}; {USAGE}")),
    }
}

/// Random models unless one is named; the large one with a quarter of its layers, since a CPU computes it too.
fn check_size(options: &Options) -> CheckSize {
    let (models, tokens): (&[&str], u32) = match options.simulate {
        true => (&["tiny"], 6),
        false => (&["smollm2", "llama-8b/8"], 256),
    };
    let named = options.model.clone().into_iter();
    CheckSize {
        seeds: options.seeds,
        models: named.chain(models.iter().map(PathBuf::from)).collect(),
        tokens,
        is_checked: options.simulate,
    }
}

fn bench(options: &Options) -> Result<(), String> {
    type Open<'o> = &'o dyn Fn(Products) -> Result<Arc<dyn Clocked>, String>;
    let simulated: Open<'_> = &|_| Ok(Arc::new(SimtDevice::new(SIMULATED_BYTES, 1)));
    let real: Open<'_> = &|products| {
        let device = CudaDevice::open(0, &options.kernels, products);
        device
            .map(|device| Arc::new(device) as Arc<dyn Clocked>)
            .map_err(|error| error.to_string())
    };
    let (open, size) = match options.simulate {
        true => (simulated, Size::tiny()),
        false => (real, Size::llama_8b()),
    };
    let ceilings = gpu::bench(&*open(Products::Fastest)?, &size)?;
    gpu::model_bench_head();
    for (products, division, name) in [
        (Products::Fastest, Division::FAST, ""),
        (Products::Deterministic, Division::DETERMINISTIC, ", deterministic"),
    ] {
        let engine = open(products)?;
        let transfers = engine.another_stream().map_err(|error| error.to_string())?;
        let run = ModelRun {
            engine,
            transfers,
            division,
            name,
        };
        gpu::model_bench(run, &size, ceilings)?;
    }
    Ok(())
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.to_owned()));
    let mut options = Options {
        kernels: std::env::var_os("KVASIR_KERNELS").map_or_else(|| PathBuf::from(".cache/kernels"), PathBuf::from),
        seeds: 5,
        model: None,
        shape: "llama-8b".into(),
        vocab: None,
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
            "--shape" => options.shape = value,
            "--vocab" => options.vocab = Some(number()? as usize),
            "--sidecar" => options.sidecar = value.into(),
            "--seeds" => options.seeds = number()?,
            _ => return Err(format!("there is no {flag}; {USAGE}")),
        }
    }
    Ok(options)
}
