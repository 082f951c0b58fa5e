//! The calls into the SIMT layer.

use crate::swaps::{Copy, SimtSwap, copies};
use kvasir_cuda::ops::{self, Gemm, GemmShape};
use kvasir_cuda::{
    Buffer, Device, DeviceError, DeviceMemory, Fetch, HostBuffer, Launch, Memory, Pending, Recording, SwapPart,
};
use kvasir_kernels::SwapDirection;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

unsafe extern "C" {
    fn kvasir_simt_new(bytes: usize) -> *mut c_void;
    fn kvasir_simt_free(device: *mut c_void);
    fn kvasir_simt_allocate(device: *mut c_void, bytes: usize) -> u64;
    fn kvasir_simt_release(device: *mut c_void, address: u64);
    fn kvasir_simt_taken(device: *mut c_void) -> usize;
    fn kvasir_simt_write(device: *mut c_void, address: u64, from: *const c_void, bytes: usize) -> c_int;
    fn kvasir_simt_read(device: *mut c_void, address: u64, to: *mut c_void, bytes: usize) -> u64;
    fn kvasir_simt_peek(device: *mut c_void, address: u64, to: *mut c_void, bytes: usize) -> c_int;
    fn kvasir_simt_copy(device: *mut c_void, from: u64, to: u64, bytes: usize) -> c_int;
    fn kvasir_simt_forget(device: *mut c_void, address: u64, bytes: usize) -> c_int;
    fn kvasir_simt_launch(
        device: *mut c_void,
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: usize,
        parameters: *const c_void,
        parameter_bytes: usize,
        seed: u64,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Small, since all of them are one thread here.
const MULTIPROCESSORS: usize = 8;

/// The layer's device. It belongs to one caller at a time.
struct Raw(*mut c_void);

// SAFETY: the layer keeps nothing that belongs to a thread of the host between calls.
unsafe impl Send for Raw {}

pub(crate) struct Shared(Mutex<Raw>);

impl Shared {
    fn with<T>(&self, call: impl FnOnce(*mut c_void) -> T) -> T {
        call(self.0.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    fn launch(&self, seed: &AtomicU64, launch: Launch, arguments: &[u8]) -> Result<(), DeviceError> {
        let name = CString::new(launch.kernel).map_err(|error| DeviceError::Failed(error.to_string()))?;
        let seed = seed.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let (mut message, block) = ([0 as c_char; 512], [launch.threads, 1, 1]);
        // SAFETY: pointers and lengths belong together and outlive the call; the layer compares the arguments' length with the kernel's
        // struct, checks every access of the kernel against the buffers, and writes a terminated message.
        let status = self.with(|device| unsafe {
            kvasir_simt_launch(
                device,
                name.as_ptr(),
                launch.grid.as_ptr(),
                block.as_ptr(),
                launch.shared_bytes,
                arguments.as_ptr().cast(),
                arguments.len(),
                seed,
                message.as_mut_ptr(),
                message.len(),
            )
        });
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the layer ended the message with a zero.
        let text = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy();
        Err(DeviceError::Failed(format!("{text} (seed {seed})")))
    }
}

impl Shared {
    /// Copies bytes, and whether they were written.
    pub(crate) fn copy(&self, copy: Copy) -> Result<(), DeviceError> {
        // SAFETY: the device lives and is locked; the layer looks whether it has such buffers.
        let status = self.with(|device| unsafe { kvasir_simt_copy(device, copy.from, copy.to, copy.bytes) });
        failed_unless(status == 0, "a copy outside of its buffers, or of half an element")
    }

    /// What a copy will write is not there until it has.
    pub(crate) fn forget(&self, copy: Copy) -> Result<(), DeviceError> {
        // SAFETY: as for `copy`.
        let status = self.with(|device| unsafe { kvasir_simt_forget(device, copy.to, copy.bytes) });
        failed_unless(status == 0, "a copy outside of its buffers, or of half an element")
    }
}

impl Memory for Shared {
    fn release(&self, address: u64) {
        // SAFETY: the device lives as long as `self`, and the lock makes this its only caller.
        self.with(|device| unsafe { kvasir_simt_release(device, address) });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: made by `kvasir_simt_new`, freed once, and nobody else can have it any more.
        self.with(|device| unsafe { kvasir_simt_free(device) });
    }
}

/// A simulated device that checks every access of a kernel: its bounds, its alignment, that what is read was written, and that no two threads
/// meet without a barrier. Threads run in an order drawn from the seed.
pub struct SimtDevice {
    shared: Arc<Shared>,
    seed: Arc<AtomicU64>,
    bytes: usize,
    /// Launches with their arguments, while they are recorded.
    recording: Mutex<Option<Vec<Recorded>>>,
}

type Recorded = (Launch, Vec<u8>);

/// Launches as they were, arguments included: what a graph of the driver keeps.
struct SimtRecording {
    shared: Arc<Shared>,
    seed: Arc<AtomicU64>,
    launches: Vec<Recorded>,
}

impl Recording for SimtRecording {
    fn replay(&self) -> Result<(), DeviceError> {
        let run = |(launch, arguments): &Recorded| self.shared.launch(&self.seed, *launch, arguments);
        self.launches.iter().try_for_each(run)
    }
}

/// What was copied when it was asked for: nothing here runs later.
struct SimtFetch(Vec<u8>);

impl Fetch for SimtFetch {
    fn is_done(&self) -> bool {
        true
    }

    fn wait(self: Box<Self>, out: &mut Vec<u8>) -> Result<(), DeviceError> {
        out.extend_from_slice(&self.0);
        Ok(())
    }
}

impl SimtDevice {
    /// A device with so much memory.
    pub fn new(bytes: usize, seed: u64) -> Self {
        // SAFETY: no arguments that could be wrong; the layer ends the process when the system has no address space.
        let raw = Raw(unsafe { kvasir_simt_new(bytes) });
        Self {
            shared: Arc::new(Shared(Mutex::new(raw))),
            seed: Arc::new(AtomicU64::new(seed)),
            bytes,
            recording: Mutex::new(None),
        }
    }

    /// The same memory, with launches of its own that are recorded apart: another stream.
    pub fn beside(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            seed: Arc::clone(&self.seed),
            bytes: self.bytes,
            recording: Mutex::new(None),
        }
    }

    fn recording(&self) -> MutexGuard<'_, Option<Vec<Recorded>>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A driver refuses this while launches are recorded.
    fn check_not_recording(&self, what: &str) -> Result<(), DeviceError> {
        failed_unless(
            self.recording().is_none(),
            &format!("{what} while launches are recorded"),
        )
    }

    /// Copies from the device without asking whether it was written.
    ///
    /// # Errors
    /// [`DeviceError::Range`].
    pub fn peek(&self, from: &Buffer, offset: usize, to: &mut [u8]) -> Result<(), DeviceError> {
        from.check(offset, to.len())?;
        let address = from.address() + offset as u64;
        // SAFETY: the range was checked, `to` has its length.
        let status = self
            .shared
            .with(|device| unsafe { kvasir_simt_peek(device, address, to.as_mut_ptr().cast(), to.len()) });
        failed_unless(status == 0, "a buffer of another device")
    }
}

fn failed_unless(good: bool, what: &str) -> Result<(), DeviceError> {
    if good {
        Ok(())
    } else {
        Err(DeviceError::Failed(what.to_owned()))
    }
}

impl Device for SimtDevice {
    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        self.check_not_recording("an allocation")?;
        let bytes = bytes.max(2).next_multiple_of(2);
        // SAFETY: the device lives and is locked.
        match self
            .shared
            .with(|device| unsafe { kvasir_simt_allocate(device, bytes) })
        {
            0 => Err(DeviceError::OutOfMemory { bytes }),
            address => Ok(Buffer::new(Arc::clone(&self.shared) as Arc<dyn Memory>, address, bytes)),
        }
    }

    fn write(&self, to: &Buffer, offset: usize, from: &[u8]) -> Result<(), DeviceError> {
        self.check_not_recording("a write")?;
        to.check(offset, from.len())?;
        let address = to.address() + offset as u64;
        // SAFETY: the range was checked, and the layer looks once more whether it has such a buffer.
        let status = self
            .shared
            .with(|device| unsafe { kvasir_simt_write(device, address, from.as_ptr().cast(), from.len()) });
        failed_unless(status == 0, "a buffer of another device")
    }

    fn read(&self, from: &Buffer, offset: usize, to: &mut [u8]) -> Result<(), DeviceError> {
        self.check_not_recording("a read")?;
        from.check(offset, to.len())?;
        let address = from.address() + offset as u64;
        // SAFETY: the range was checked, and `to` has its length.
        let status = self
            .shared
            .with(|device| unsafe { kvasir_simt_read(device, address, to.as_mut_ptr().cast(), to.len()) });
        match status {
            0 => Ok(()),
            1 => failed_unless(false, "a buffer of another device"),
            at => Err(DeviceError::Failed(format!(
                "byte {} of {} read back was never written",
                at - 2,
                to.len()
            ))),
        }
    }

    fn fetch(&self, from: &Buffer, offset: usize, bytes: usize) -> Result<Box<dyn Fetch>, DeviceError> {
        let mut copy = vec![0; bytes];
        self.read(from, offset, &mut copy)?;
        Ok(Box::new(SimtFetch(copy)))
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostBuffer, DeviceError> {
        self.check_not_recording("an allocation")?;
        let bytes = bytes.max(2).next_multiple_of(2);
        // SAFETY: the device lives and is locked.
        match self
            .shared
            .with(|device| unsafe { kvasir_simt_allocate(device, bytes) })
        {
            0 => Err(DeviceError::HostMemory { bytes }),
            address => Ok(HostBuffer::new(
                Arc::clone(&self.shared) as Arc<dyn Memory>,
                address,
                bytes,
            )),
        }
    }

    fn swap(
        &self,
        direction: SwapDirection,
        device: &Buffer,
        host: &HostBuffer,
        parts: &[SwapPart],
    ) -> Result<Box<dyn Pending>, DeviceError> {
        self.check_not_recording("a swap")?;
        let copies = copies(direction, device, host, parts)?;
        Ok(Box::new(SimtSwap::start(Arc::clone(&self.shared), copies)?))
    }

    fn another_stream(&self) -> Result<Arc<dyn Device>, DeviceError> {
        Ok(Arc::new(self.beside()))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Box<dyn Recording>, DeviceError> {
        *self.recording() = Some(Vec::new());
        let worked = work();
        let launches = self.recording().take().unwrap_or_default();
        worked?;
        failed_unless(!launches.is_empty(), "nothing was recorded")?;
        Ok(Box::new(SimtRecording {
            shared: Arc::clone(&self.shared),
            seed: Arc::clone(&self.seed),
            launches,
        }))
    }

    fn launch(&self, launch: Launch, arguments: &[u8]) -> Result<(), DeviceError> {
        if let Some(launches) = &mut *self.recording() {
            launches.push((launch, arguments.to_vec()));
            return Ok(());
        }
        self.shared.launch(&self.seed, launch, arguments)
    }

    fn product(&self, op: &Gemm<'_>) -> Result<(), DeviceError> {
        ops::gemm(self, op, GemmShape::for_rows(op.rows))
    }

    fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        let total = self.bytes as u64;
        // SAFETY: the device lives and is locked.
        let taken = self.shared.with(|device| unsafe { kvasir_simt_taken(device) }) as u64;
        Ok(DeviceMemory {
            free: total.saturating_sub(taken),
            total,
            taken,
        })
    }

    fn multiprocessors(&self) -> usize {
        MULTIPROCESSORS
    }

    fn description(&self) -> String {
        "simulated device".to_owned()
    }
}
