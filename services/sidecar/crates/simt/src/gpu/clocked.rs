//! What a measurement asks of a device beyond running kernels.

use crate::SimtDevice;
use kvasir_cuda::driver::CudaDevice;
use kvasir_cuda::{Buffer, Device, DeviceError};
use std::time::Instant;

/// A device with a clock.
pub trait Clocked: Device {
    /// Milliseconds that the device takes for work.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], and what `work` fails with.
    fn time(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<f64, DeviceError>;

    /// Copies between buffers of the device.
    ///
    /// # Errors
    /// [`DeviceError::Range`], [`DeviceError::Failed`].
    fn duplicate(&self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<(), DeviceError>;
}

impl Clocked for CudaDevice {
    fn time(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<f64, DeviceError> {
        self.milliseconds(work)
    }

    fn duplicate(&self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<(), DeviceError> {
        self.copy(from, to, bytes)
    }
}

/// By this machine's clock, since all work ends before its call does.
impl Clocked for SimtDevice {
    fn time(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<f64, DeviceError> {
        let began = Instant::now();
        work().map(|()| began.elapsed().as_secs_f64() * 1e3)
    }

    fn duplicate(&self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<(), DeviceError> {
        let mut copy = vec![0; bytes];
        self.read(from, 0, &mut copy)?;
        self.write(to, 0, &copy)
    }
}
