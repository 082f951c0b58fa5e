//! Page-locked memory that blocks of a device's pool are swapped to.

use crate::device::{Buffer, Device, DeviceError, HostBuffer, SwapPart};
use kvasir_kernels::{BlockGroup, PoolError, RemoteSlots, SwapDirection};
use std::sync::{Arc, Mutex, PoisonError};

/// Slots of a pool on a device. Each direction has a stream of its own, beside those of steps and transfers: the bus carries both at once, and a
/// sequence that comes back does not wait behind one that goes.
pub struct DeviceSlots {
    out: Arc<dyn Device>,
    back: Arc<dyn Device>,
    pool: Buffer,
    block_bytes: usize,
    slot_bytes: usize,
    /// Made with the first swap: to lock gigabytes takes seconds, and many workers never swap.
    memory: Mutex<Option<HostBuffer>>,
}

impl DeviceSlots {
    /// So many slots for the blocks of `pool`, by streams beside the device's own.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn new(device: &dyn Device, pool: Buffer, block_bytes: usize, slot_count: u32) -> Result<Self, DeviceError> {
        Ok(Self {
            out: device.another_stream()?,
            back: device.another_stream()?,
            pool,
            block_bytes,
            slot_bytes: slot_count as usize * block_bytes,
            memory: Mutex::default(),
        })
    }

    fn memory(&self) -> Result<HostBuffer, DeviceError> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        match &*memory {
            Some(memory) => Ok(memory.clone()),
            None => Ok(memory.insert(self.out.allocate_host(self.slot_bytes)?).clone()),
        }
    }
}

impl RemoteSlots for DeviceSlots {
    fn copy(&self, direction: SwapDirection, groups: &[BlockGroup]) -> Result<(), PoolError> {
        let bytes = self.block_bytes;
        let part = |group: &BlockGroup| SwapPart {
            device_offset: group.block as usize * bytes,
            host_offset: group.slot as usize * bytes,
            bytes: group.count as usize * bytes,
        };
        let parts: Vec<SwapPart> = groups.iter().map(part).collect();
        let stream = match direction {
            SwapDirection::Out => &self.out,
            SwapDirection::In => &self.back,
        };
        let copied = self
            .memory()
            .and_then(|memory| stream.swap(direction, &self.pool, &memory, &parts)?.wait());
        copied.map_err(|error| match error {
            DeviceError::HostMemory { bytes } => PoolError::OutOfMemory { bytes: bytes as u64 },
            error => PoolError::Device(error.to_string()),
        })
    }
}
