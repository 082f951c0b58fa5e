//! Simulated GPUs in the place of real ones.

use crate::SimtDevice;
use kvasir_cuda::DeviceError;
use kvasir_cuda::driver::Products;
use kvasir_sidecar::gpus::{Gpu, Gpus};
use std::path::Path;
use std::sync::Arc;

/// Memory of a simulated GPU. Address space only, until it is allocated.
const BYTES: usize = 512 << 20;

/// Two GPUs, new ones each time.
pub struct Simulated;

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
