//! Copies between a simulated device and its host, as late as a device may make them.

use crate::device::Shared;
use kvasir_cuda::{Buffer, DeviceError, HostBuffer, Pending, SwapPart};
use kvasir_kernels::SwapDirection;
use std::sync::Arc;

/// One copy, by addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes: usize,
}

/// The copies of a swap, all checked.
pub(crate) fn copies(
    direction: SwapDirection,
    device: &Buffer,
    host: &HostBuffer,
    parts: &[SwapPart],
) -> Result<Vec<Copy>, DeviceError> {
    let copy = |part: &SwapPart| {
        device.check(part.device_offset, part.bytes)?;
        host.check(part.host_offset, part.bytes)?;
        let on_device = device.address() + part.device_offset as u64;
        let on_host = host.address() + part.host_offset as u64;
        let (from, to) = match direction {
            SwapDirection::Out => (on_device, on_host),
            SwapDirection::In => (on_host, on_device),
        };
        Ok(Copy {
            from,
            to,
            bytes: part.bytes,
        })
    };
    parts.iter().map(copy).collect()
}

/// Copies under way. They are made when somebody waits for them, which is the latest moment: who overwrites what they read finds the wrong bytes
/// in the copy, and a kernel that reads what they write finds that it was never written.
pub(crate) struct SimtSwap {
    shared: Arc<Shared>,
    copies: Vec<Copy>,
}

impl SimtSwap {
    pub(crate) fn start(shared: Arc<Shared>, copies: Vec<Copy>) -> Result<Self, DeviceError> {
        copies.iter().try_for_each(|copy| shared.forget(*copy))?;
        Ok(Self { shared, copies })
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        std::mem::take(&mut self.copies)
            .into_iter()
            .try_for_each(|copy| self.shared.copy(copy))
    }
}

impl Pending for SimtSwap {
    fn wait(mut self: Box<Self>) -> Result<(), DeviceError> {
        self.finish()
    }
}

impl Drop for SimtSwap {
    fn drop(&mut self) {
        // A device makes its copies whether anybody waits or not.
        let _ = self.finish();
    }
}
