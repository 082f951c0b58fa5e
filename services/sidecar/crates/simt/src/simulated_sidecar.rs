//! `kvasir-sidecar-simulated`: the sidecar, whose GPUs are simulated. Its command line is that of `kvasir-sidecar`; tests and dry runs use it.

use kvasir_cuda::DeviceError;
use kvasir_cuda::driver::Products;
use kvasir_sidecar::gpus::{Gpu, Gpus};
use kvasir_sidecar::run::run;
use kvasir_simt::SimtDevice;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Memory of a simulated GPU. Address space only, until it is allocated.
const BYTES: usize = 512 << 20;

/// Two GPUs.
struct Simulated;

impl Gpus for Simulated {
    fn open(&self, ordinal: usize, _kernels: &Path, _products: Products) -> Result<Gpu, DeviceError> {
        if ordinal > 1 {
            return Err(DeviceError::Failed(format!(
                "there is no GPU {ordinal}: the simulation has 2; use --device cuda:N with a smaller N, or cpu"
            )));
        }
        let engine = SimtDevice::new(BYTES, ordinal as u64);
        Ok(Gpu {
            transfers: Arc::new(engine.beside()),
            engine: Arc::new(engine),
        })
    }
}

fn main() -> ExitCode {
    run(&Simulated)
}
