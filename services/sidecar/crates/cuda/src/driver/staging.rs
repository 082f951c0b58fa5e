//! Host memory that the GPU's copy engines reach by themselves, and copies through it.
//!
//! A copy from or to other memory goes through the driver's own small staging buffer and makes the caller wait; these run beside everything else.

use super::failed;
use crate::device::{DeviceError, Fetch};
use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of one piece of a copy. Larger: fewer calls; smaller: the host's copy and the device's overlap sooner.
pub(super) const PIECE_BYTES: usize = 4 << 20;
/// Pieces on their way to the device at once.
const PIECES: usize = 4;
/// Buffers of answers that are kept.
const SPARE_MAX: usize = 8;

/// Page-locked memory.
pub(super) struct Pinned {
    context: Arc<CudaContext>,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory that this value alone names.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DeviceError> {
        context
            .bind_to_thread()
            .map_err(|error| failed("the GPU's context", error))?;
        // SAFETY: a plain allocation of at least one byte.
        let at = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(|error| failed("an allocation of page-locked memory", error))?;
        // SAFETY: it was just given to us, so long; from now on it is initialised.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes.max(1)) };
        Ok(Self {
            context: Arc::clone(context),
            at: at.cast(),
            bytes: bytes.max(1),
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: ours, so long, and initialised.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: ours alone, so long, and initialised.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made in `new`, freed once; copies that use it ended, since their owners wait for them first.
            let _ = unsafe { result::free_host(self.at.cast()) };
        }
    }
}

/// Pieces of copies to the device, in turn.
#[derive(Default)]
pub(super) struct Staging {
    pieces: Vec<Piece>,
    next: usize,
}

struct Piece {
    memory: Pinned,
    /// Passed when the copy from it has ended.
    copied: CudaEvent,
}

impl Staging {
    /// Copies to `address` on the stream; `from` may change as soon as this returns.
    pub(super) fn write(&mut self, stream: &CudaStream, address: u64, from: &[u8]) -> Result<(), DeviceError> {
        for (index, chunk) in from.chunks(PIECE_BYTES).enumerate() {
            let piece = self.piece(stream)?;
            piece
                .copied
                .synchronize()
                .map_err(|error| failed("an earlier copy to the device", error))?;
            let staged = &mut piece.memory.bytes_mut()[..chunk.len()];
            staged.copy_from_slice(chunk);
            let to = address + (index * PIECE_BYTES) as u64;
            // SAFETY: the caller checked the range; the piece is written again only after the event below.
            unsafe { result::memcpy_htod_async(to, staged, stream.cu_stream()) }
                .map_err(|error| failed("a copy to the device", error))?;
            piece.copied.record(stream).map_err(|error| failed("an event", error))?;
        }
        Ok(())
    }

    fn piece(&mut self, stream: &CudaStream) -> Result<&mut Piece, DeviceError> {
        if self.pieces.len() < PIECES {
            self.pieces.push(Piece {
                memory: Pinned::new(stream.context(), PIECE_BYTES)?,
                copied: event(stream.context())?,
            });
            self.next = 0;
            return self
                .pieces
                .last_mut()
                .ok_or_else(|| DeviceError::Failed("a piece that was just made is gone".into()));
        }
        let index = self.next;
        self.next = (self.next + 1) % PIECES;
        Ok(&mut self.pieces[index])
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for piece in &self.pieces {
            // What fails here failed before and was told.
            let _ = piece.copied.synchronize();
        }
    }
}

/// Buffers that answers arrive in, kept for the next ones.
pub(super) type Spare = Arc<Mutex<Vec<Pinned>>>;

/// A copy to page-locked memory.
pub(super) struct PinnedFetch {
    /// Taken when it is over.
    memory: Option<Pinned>,
    bytes: usize,
    done: CudaEvent,
    spare: Spare,
}

impl PinnedFetch {
    /// Starts it on the stream.
    pub(super) fn start(stream: &CudaStream, spare: &Spare, address: u64, bytes: usize) -> Result<Self, DeviceError> {
        let found = {
            let mut spare = spare.lock().unwrap_or_else(PoisonError::into_inner);
            let fitting = spare.iter().position(|memory| memory.bytes >= bytes);
            fitting.map(|index| spare.swap_remove(index))
        };
        let mut memory = match found {
            Some(memory) => memory,
            None => Pinned::new(stream.context(), bytes.next_power_of_two())?,
        };
        let done = event(stream.context())?;
        if bytes > 0 {
            // SAFETY: the caller checked the range; the memory is given back only when the copy has ended.
            unsafe { result::memcpy_dtoh_async(&mut memory.bytes_mut()[..bytes], address, stream.cu_stream()) }
                .map_err(|error| failed("a copy from the device", error))?;
        }
        done.record(stream).map_err(|error| failed("an event", error))?;
        Ok(Self {
            memory: Some(memory),
            bytes,
            done,
            spare: Arc::clone(spare),
        })
    }

    /// Waits, and hands what came to `take`.
    pub(super) fn finish<T>(self, take: impl FnOnce(&[u8]) -> T) -> Result<T, DeviceError> {
        self.done
            .synchronize()
            .map_err(|error| failed("the device's work", error))?;
        let bytes = self
            .memory
            .as_ref()
            .map_or(&[][..], |memory| &memory.bytes()[..self.bytes]);
        Ok(take(bytes))
    }
}

impl Drop for PinnedFetch {
    fn drop(&mut self) {
        // Nobody may get the memory while the device writes to it.
        let ended = self.done.synchronize().is_ok();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = self.memory.take().filter(|_| ended && spare.len() < SPARE_MAX) {
            spare.push(memory);
        }
    }
}

impl Fetch for PinnedFetch {
    fn is_done(&self) -> bool {
        // An error is told by the wait.
        self.done.context().bind_to_thread().is_err() || self.done.try_is_complete().unwrap_or(true)
    }

    fn wait(self: Box<Self>, out: &mut Vec<u8>) -> Result<(), DeviceError> {
        self.finish(|bytes| out.extend_from_slice(bytes))
    }
}

/// Passed at once until it is recorded.
fn event(context: &Arc<CudaContext>) -> Result<CudaEvent, DeviceError> {
    context
        .new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING))
        .map_err(|error| failed("an event", error))
}
