//! The seam between launchers and what runs kernels: a GPU's driver, or the SIMT layer that stands for one in tests.

use crate::ops::Gemm;
use kvasir_kernels::SwapDirection;
use std::sync::Arc;

/// Why a device refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No memory left.
    #[error("the device has no {bytes} bytes left; use a smaller --kv-bytes or model")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The host gives no memory that copies reach by themselves.
    #[error(
        "the host gives no {bytes} bytes of page-locked memory; use a smaller --swap-bytes, or a larger limit on memory"
    )]
    HostMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A transfer beyond a buffer's end.
    #[error("bytes {begin}..{end} of a buffer of {length}")]
    Range {
        /// First byte.
        begin: usize,
        /// One past the last.
        end: usize,
        /// Bytes of the buffer.
        length: usize,
    },
    /// What the kernels cannot do.
    #[error("{what} is {value}; the CUDA kernels take {allowed}")]
    Unsupported {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The device, its driver or a kernel failed.
    #[error("{0}")]
    Failed(String),
}

/// Memory of a device. Addresses are the device's.
pub trait Memory: Send + Sync {
    /// Gives back what [`Device::allocate`] gave.
    fn release(&self, address: u64);
}

/// Memory that is given back when the last part of it is dropped.
#[derive(Clone)]
pub struct Buffer {
    allocation: Arc<Allocation>,
    address: u64,
    bytes: usize,
}

struct Allocation {
    memory: Arc<dyn Memory>,
    address: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.memory.release(self.address);
    }
}

impl Buffer {
    /// Takes over an allocation.
    pub fn new(memory: Arc<dyn Memory>, address: u64, bytes: usize) -> Self {
        Self {
            allocation: Arc::new(Allocation { memory, address }),
            address,
            bytes,
        }
    }

    /// Of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length.
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// Some of its bytes.
    ///
    /// # Errors
    /// [`DeviceError::Range`].
    pub fn part(&self, offset: usize, bytes: usize) -> Result<Self, DeviceError> {
        self.check(offset, bytes)?;
        Ok(Self {
            allocation: Arc::clone(&self.allocation),
            address: self.address + offset as u64,
            bytes,
        })
    }

    /// Checks that a transfer stays inside.
    ///
    /// # Errors
    /// [`DeviceError::Range`].
    pub fn check(&self, offset: usize, bytes: usize) -> Result<(), DeviceError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            end => Err(DeviceError::Range {
                begin: offset,
                end: end.unwrap_or(usize::MAX),
                length: self.bytes,
            }),
        }
    }
}

/// Page-locked memory of the host, which the device's copies reach without anybody's help. Its addresses are the host's; kernels do not get it.
#[derive(Clone)]
pub struct HostBuffer(Buffer);

impl HostBuffer {
    /// Takes over an allocation.
    pub fn new(memory: Arc<dyn Memory>, address: u64, bytes: usize) -> Self {
        Self(Buffer::new(memory, address, bytes))
    }

    /// Of the first byte.
    pub fn address(&self) -> u64 {
        self.0.address
    }

    /// Length.
    pub fn byte_len(&self) -> usize {
        self.0.bytes
    }

    /// Checks that a copy stays inside.
    ///
    /// # Errors
    /// [`DeviceError::Range`].
    pub fn check(&self, offset: usize, bytes: usize) -> Result<(), DeviceError> {
        self.0.check(offset, bytes)
    }
}

/// One copy between a device's buffer and the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwapPart {
    /// First byte in the device's buffer.
    pub device_offset: usize,
    /// First byte in the host's.
    pub host_offset: usize,
    /// Bytes.
    pub bytes: usize,
}

/// Work that is under way.
pub trait Pending: Send {
    /// Waits until it is done.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also for what failed before.
    fn wait(self: Box<Self>) -> Result<(), DeviceError>;
}

/// A kernel and its grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// File in `services/sidecar/kernels`, without `.cu`.
    pub file: &'static str,
    /// Symbol in it.
    pub kernel: &'static str,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// That can still be allocated.
    pub free: u64,
    /// In all, others' too.
    pub total: u64,
    /// That this process has allocated; others on the same device take more at any moment.
    pub taken: u64,
}

/// A copy from the device that is under way.
pub trait Fetch: Send {
    /// Whether [`Fetch::wait`] would not wait.
    fn is_done(&self) -> bool;

    /// Appends the bytes.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also for what failed before; `out` is then unchanged.
    fn wait(self: Box<Self>, out: &mut Vec<u8>) -> Result<(), DeviceError>;
}

/// Launches that were recorded once and run again as one.
pub trait Recording: Send {
    /// Starts all of it.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn replay(&self) -> Result<(), DeviceError>;
}

/// What runs kernels. Work is done in the order it was given; [`Device::read`] waits for it.
pub trait Device: Send + Sync {
    /// New memory; what it holds is undefined.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError>;

    /// Copies to the device. `from` may be changed as soon as this returns.
    ///
    /// # Errors
    /// [`DeviceError::Range`], [`DeviceError::Failed`].
    fn write(&self, to: &Buffer, offset: usize, from: &[u8]) -> Result<(), DeviceError>;

    /// Waits for all work, then copies from the device.
    ///
    /// # Errors
    /// [`DeviceError::Range`], [`DeviceError::Failed`], also for what failed before.
    fn read(&self, from: &Buffer, offset: usize, to: &mut [u8]) -> Result<(), DeviceError>;

    /// Starts a kernel; `arguments` is its struct.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn launch(&self, launch: Launch, arguments: &[u8]) -> Result<(), DeviceError>;

    /// `out = x · weightsᵀ` by the fastest way the device has; the own kernel unless it says otherwise.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
    fn product(&self, op: &Gemm<'_>) -> Result<(), DeviceError>;

    /// Starts a copy from the device, which is made when all work given so far is done.
    ///
    /// # Errors
    /// [`DeviceError::Range`], [`DeviceError::Failed`].
    fn fetch(&self, from: &Buffer, offset: usize, bytes: usize) -> Result<Box<dyn Fetch>, DeviceError>;

    /// Page-locked memory of the host; what it holds is undefined.
    ///
    /// # Errors
    /// [`DeviceError::HostMemory`].
    fn allocate_host(&self, bytes: usize) -> Result<HostBuffer, DeviceError>;

    /// Starts copies between device and host, which are made in order when all work given so far is done. Until they are waited for nobody may
    /// touch what they write, nor write what they read.
    ///
    /// # Errors
    /// [`DeviceError::Range`], and nothing is copied; [`DeviceError::Failed`].
    fn swap(
        &self,
        direction: SwapDirection,
        device: &Buffer,
        host: &HostBuffer,
        parts: &[SwapPart],
    ) -> Result<Box<dyn Pending>, DeviceError>;

    /// The same device and memory with a stream of its own, whose work runs beside this one's.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn another_stream(&self) -> Result<Arc<dyn Device>, DeviceError>;

    /// Records what `work` launches, instead of running it. It must have run before with the same shapes, so that all is prepared, and must
    /// not allocate, write, read or fetch. Launches are kept with their arguments: memory that they name has to stay where it is.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], and what `work` fails with.
    fn record(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Box<dyn Recording>, DeviceError>;

    /// How much there is.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn memory(&self) -> Result<DeviceMemory, DeviceError>;

    /// How many thread blocks run at least at the same time.
    fn multiprocessors(&self) -> usize;

    /// For people: `NVIDIA H200, compute capability 9.0`.
    fn description(&self) -> String;
}
