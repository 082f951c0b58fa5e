//! An engine as the flags ask for it: on a GPU, or on the CPU.

use std::path::PathBuf;
use std::sync::Arc;

use kvasir_cuda::driver::Products;
use kvasir_cuda::{CudaBackend, CudaOptions, Division, KvMemory};
use kvasir_engine::{Backend, Engine, EngineOptions, Footprint, KvDtype, WeightFormat};
use kvasir_kernels::Cpu;
use kvasir_model::ModelSource;

use crate::chunk_coder::CodingSite;
use crate::cli::EngineFlags;
use crate::device_coder::DeviceSite;
use crate::device_flag::DeviceFlag;
use crate::gpus::{Gpu, Gpus, OfTheDriver};
use crate::host_coder::HostSite;
use crate::memory::check_memory;
use crate::serve::Fatal;

/// KV on a CPU when nothing is said: pages that are never written cost nothing.
const KV_BYTES_ON_CPU: u64 = 512 << 20;
/// Swap space of a GPU when nothing is said, as vLLM's `--swap-space`. A CPU's KV lies in the host's memory already: more of it is better had as
/// --kv-bytes.
const SWAP_BYTES_OF_A_GPU: u64 = 4 << 30;
/// Threads that prepare what a GPU's sampling needs, and read logits where somebody wants them.
const THREADS_BESIDE_A_GPU: usize = 1;

/// An engine, and why it is not where `auto` would rather have had it.
pub struct Loaded {
    /// The engine.
    pub engine: Engine,
    /// One line.
    pub why_cpu: Option<String>,
    /// Host memory for swaps; 0: none.
    pub swap_bytes: u64,
    /// What codes its KV.
    pub site: Arc<dyn CodingSite>,
}

/// Loads the engine; `progress` gets bytes done and bytes in all.
///
/// # Errors
/// One line: what is wrong with the model, an option, the device, or memory.
pub fn load_engine(flags: &EngineFlags, progress: &mut dyn FnMut(u64, u64)) -> Result<Engine, Fatal> {
    Ok(load_engine_on(flags, &OfTheDriver, progress)?.engine)
}

/// The same with GPUs from elsewhere.
///
/// # Errors
/// As [`load_engine`].
pub fn load_engine_on(
    flags: &EngineFlags,
    gpus: &dyn Gpus,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, Fatal> {
    let source = ModelSource::open(&flags.model)?;
    let why_cpu = match flags.device {
        DeviceFlag::Cpu => None,
        DeviceFlag::Cuda(ordinal) => {
            return on_gpu(flags, &source, open(flags, &source, gpus, ordinal)?, progress);
        }
        DeviceFlag::Auto => match open(flags, &source, gpus, 0) {
            Ok(gpu) => return on_gpu(flags, &source, gpu, progress),
            Err(why) => Some(why),
        },
    };
    let options = engine_options(flags);
    let swap_bytes = flags.swap_bytes.unwrap_or(0);
    let mut footprint = Footprint::of(&source, &options)?;
    footprint.kv = footprint.kv.saturating_add(swap_bytes);
    check_memory(&flags.model, &footprint)?;
    let engine = Engine::load(&source, options, progress)?;
    let site = Arc::new(HostSite(engine.pool()));
    Ok(Loaded {
        engine,
        site,
        why_cpu,
        swap_bytes,
    })
}

/// What the flags say about how to run a model.
pub fn engine_options(flags: &EngineFlags) -> EngineOptions {
    EngineOptions {
        kv_bytes: flags.kv_bytes.unwrap_or(KV_BYTES_ON_CPU),
        block_size: flags.block_size,
        kv_dtype: flags.kv_dtype.into(),
        shard_count: flags.shards,
        threads: flags.thread_count(),
        step_token_max: flags.step_token_max,
        weights: flags.weights.into(),
    }
}

/// A GPU that can do what the flags ask for.
fn open(flags: &EngineFlags, source: &ModelSource, gpus: &dyn Gpus, ordinal: usize) -> Result<Gpu, String> {
    let options = engine_options(flags);
    if options.shard_count != 1 {
        return Err(format!("--shards is {}; on a GPU use 1", options.shard_count));
    }
    if options.kv_dtype != KvDtype::Bf16 {
        return Err("--kv-dtype is not bf16; a GPU keeps KV in bf16".into());
    }
    if !matches!(options.weights, WeightFormat::Stored | WeightFormat::Bf16) {
        return Err("--weights is neither stored nor bf16; a GPU keeps weights in bf16".into());
    }
    CudaBackend::check(source.config()).map_err(|error| error.to_string())?;
    let products = if flags.deterministic {
        Products::Deterministic
    } else {
        Products::Fastest
    };
    let gpu = gpus.open(ordinal, &kernels_folder(flags), products);
    gpu.map_err(|error| error.to_string())
}

fn kernels_folder(flags: &EngineFlags) -> PathBuf {
    let beside = || {
        let program = std::env::current_exe().ok()?;
        Some(program.parent()?.join("kernels")).filter(|folder| folder.is_dir())
    };
    let named = flags.kernels.clone().or_else(beside);
    named.unwrap_or_else(|| PathBuf::from(".cache/kernels"))
}

fn on_gpu(
    flags: &EngineFlags,
    source: &ModelSource,
    gpu: Gpu,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, Fatal> {
    let options = engine_options(flags);
    let on_device = CudaOptions {
        kv_memory: match flags.kv_bytes {
            Some(bytes) => KvMemory::Bytes(bytes),
            None => KvMemory::Share(flags.kv_memory),
        },
        block_size: options.block_size,
        division: if flags.deterministic {
            Division::DETERMINISTIC
        } else {
            Division::FAST
        },
        rows_max: options.step_token_max,
        graphs: true,
    };
    let transfers = gpu.transfers;
    let backend = CudaBackend::load(gpu.engine, Arc::clone(&transfers), source, on_device, progress)?;
    let site = DeviceSite::new(Arc::clone(backend.pool()), backend.device_pool(), &*transfers);
    let site = Arc::new(site?);
    let config = source.config().clone();
    let cpu = Arc::new(Cpu::new(THREADS_BESIDE_A_GPU)?);
    let revision = source.revision().to_owned();
    let engine = Engine::with_backend(cpu, Box::new(backend), config, revision, options)?;
    Ok(Loaded {
        engine,
        site,
        why_cpu: None,
        swap_bytes: flags.swap_bytes.unwrap_or(SWAP_BYTES_OF_A_GPU),
    })
}
