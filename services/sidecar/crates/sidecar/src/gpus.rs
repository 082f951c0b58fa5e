//! Where GPUs come from.

use std::path::Path;
use std::sync::Arc;

use kvasir_cuda::driver::{CudaDevice, Products};
use kvasir_cuda::{Device, DeviceError};

/// One GPU, as two streams of work that run beside each other.
pub struct Gpu {
    /// Steps.
    pub engine: Arc<dyn Device>,
    /// KV to and from other sidecars.
    pub transfers: Arc<dyn Device>,
}

/// Opens GPUs.
pub trait Gpus: Sync {
    /// Opens GPU `ordinal`, whose kernels lie in a folder.
    ///
    /// # Errors
    /// [`DeviceError::Failed`]: why not, in one line.
    fn open(&self, ordinal: usize, kernels: &Path, products: Products) -> Result<Gpu, DeviceError>;
}

/// The GPUs of this machine, through its driver, if it has one.
pub struct OfTheDriver;

impl Gpus for OfTheDriver {
    fn open(&self, ordinal: usize, kernels: &Path, products: Products) -> Result<Gpu, DeviceError> {
        let engine = CudaDevice::open(ordinal, kernels, products)?;
        let transfers = engine.beside()?;
        Ok(Gpu {
            engine: Arc::new(engine),
            transfers: Arc::new(transfers),
        })
    }
}
