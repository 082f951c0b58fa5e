//! Host memory for swaps, and copies between it and the device.

use super::{CudaDevice, failed};
use crate::device::{Buffer, DeviceError, HostBuffer, Memory, Pending, SwapPart};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUevent_flags};
use cudarc::driver::{CudaContext, CudaEvent};
use kvasir_kernels::SwapDirection;
use std::ffi::c_void;
use std::sync::Arc;

/// Gives back page-locked memory.
struct HostOwner(Arc<CudaContext>);

impl Memory for HostOwner {
    fn release(&self, address: u64) {
        if self.0.bind_to_thread().is_ok() {
            // SAFETY: the address came from `malloc_host` of this context and is released once; copies that use it ended, since each keeps its
            // buffers and waits when it is dropped. What fails here failed before and was told.
            let _ = unsafe { result::free_host(address as *mut c_void) };
        }
    }
}

/// Copies under way, and the memory that they need until they have ended.
pub(super) struct Swapping {
    done: CudaEvent,
    _device: Buffer,
    _host: HostBuffer,
}

impl Pending for Swapping {
    fn wait(self: Box<Self>) -> Result<(), DeviceError> {
        self.done
            .synchronize()
            .map_err(|error| failed("a swap between device and host", error))
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        // What fails here was told by the wait, or nobody asked.
        let _ = self.done.synchronize();
    }
}

impl CudaDevice {
    pub(super) fn lock_host_memory(&self, bytes: usize) -> Result<HostBuffer, DeviceError> {
        self.bind()?;
        let bytes = bytes.max(1);
        // SAFETY: a plain allocation of at least one byte. It is never read as Rust memory, only by copies.
        match unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) } {
            Ok(address) => {
                let owner = Arc::new(HostOwner(Arc::clone(&self.context)));
                Ok(HostBuffer::new(owner, address as u64, bytes))
            }
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(DeviceError::HostMemory { bytes }),
            Err(error) => Err(failed("an allocation of page-locked memory", error)),
        }
    }

    pub(super) fn start_swap(
        &self,
        direction: SwapDirection,
        device: &Buffer,
        host: &HostBuffer,
        parts: &[SwapPart],
    ) -> Result<Swapping, DeviceError> {
        for part in parts {
            device.check(part.device_offset, part.bytes)?;
            host.check(part.host_offset, part.bytes)?;
        }
        self.bind()?;
        // Blocking: who waits for milliseconds should leave its core to others.
        let done = self
            .context
            .new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))
            .map_err(|error| failed("an event", error))?;
        // Dropped on any error below, and then waits for what was started.
        let swapping = Swapping {
            done,
            _device: device.clone(),
            _host: host.clone(),
        };
        let stream = self.stream.cu_stream();
        let started = parts.iter().try_for_each(|part| {
            let on_device = device.address() + part.device_offset as u64;
            let on_host = (host.address() + part.host_offset as u64) as *mut c_void;
            // SAFETY: both ranges were checked, both buffers live until the copies have ended, and nobody else touches these bytes until
            // then by the promise of `Device::swap`.
            unsafe {
                match direction {
                    SwapDirection::Out => sys::cuMemcpyDtoHAsync_v2(on_host, on_device, part.bytes, stream),
                    SwapDirection::In => sys::cuMemcpyHtoDAsync_v2(on_device, on_host, part.bytes, stream),
                }
            }
            .result()
        });
        let recorded = swapping.done.record(&self.stream);
        started.map_err(|error| failed("a copy between device and host", error))?;
        recorded.map_err(|error| failed("an event", error))?;
        Ok(swapping)
    }
}
