//! The pool's blocks as transfers see them: gathered and scattered by kernels, through packed memory on the device.

use crate::device::{Buffer, Device, DeviceError};
use crate::ops::{Copy, KvPiece, PoolShape, kv_copy};
use crate::slots::DeviceSlots;
use kvasir_kernels::{PoolError, RemoteKv, RemoteSlots};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Transfers that pack or unpack a block at once: while one's bytes are copied on the host, the device works for others. More take a block's memory
/// each.
const LANES: usize = 4;

/// A pool's blocks in a device's memory: bf16 `[block][layer][K, V][kv_head][token][head_size]`.
#[derive(Clone)]
pub struct DevicePool {
    /// All of them.
    pub memory: Buffer,
    /// Sizes of one.
    pub shape: PoolShape,
}

/// Memory of the pool on a device, with the stream that transfers use.
pub struct DeviceKv {
    device: Arc<dyn Device>,
    pool: Buffer,
    shape: PoolShape,
    lanes: Vec<Mutex<Lane>>,
    /// The lane to wait for when all are taken.
    next: AtomicUsize,
}

/// Where one transfer packs or unpacks a block.
struct Lane {
    packed: Buffer,
    piece: Buffer,
}

impl DeviceKv {
    /// Transfers of `pool` by `device`, which may be another stream than the engine's.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new(device: Arc<dyn Device>, pool: Buffer, shape: PoolShape) -> Result<Self, DeviceError> {
        let lane = |_| {
            Ok(Mutex::new(Lane {
                packed: device.allocate(shape.block_bytes())?,
                piece: device.allocate(KvPiece::BYTES)?,
            }))
        };
        let lanes = (0..LANES).map(lane).collect::<Result<_, DeviceError>>()?;
        Ok(Self {
            device,
            pool,
            shape,
            lanes,
            next: AtomicUsize::new(0),
        })
    }

    /// A lane that nobody has, else the one whose turn it is.
    fn lane(&self) -> MutexGuard<'_, Lane> {
        for lane in &self.lanes {
            match lane.try_lock() {
                Ok(lane) => return lane,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.lanes.len();
        self.lanes[turn].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(
        &self,
        lane: &Lane,
        copy: Copy,
        block: u32,
        [tokens, layers, heads]: &[Range<u32>; 3],
    ) -> Result<(), DeviceError> {
        let piece = KvPiece {
            packed: 0,
            packed_tokens: tokens.end - tokens.start,
            block,
            token_begin: tokens.start,
            token_count: tokens.end - tokens.start,
            layer_begin: layers.start,
            layer_count: layers.end - layers.start,
            head_begin: heads.start,
            head_count: heads.end - heads.start,
        };
        self.device.write(&lane.piece, 0, &piece.to_bytes(&self.shape))?;
        let memory = [&self.pool, &lane.packed, &lane.piece];
        kv_copy(&*self.device, copy, memory, &self.shape, 1, layers.len())
    }
}

impl RemoteKv for DeviceKv {
    fn gather(&self, block: u32, ranges: [Range<u32>; 3], length: usize, out: &mut Vec<u8>) -> Result<(), PoolError> {
        let lane = self.lane();
        let gathered = self
            .copy(&lane, Copy::Gather, block, &ranges)
            .and_then(|()| self.device.fetch(&lane.packed, 0, length)?.wait(out));
        gathered.map_err(|error| PoolError::Device(error.to_string()))
    }

    fn scatter(&self, block: u32, ranges: [Range<u32>; 3], data: &[u8]) -> Result<(), PoolError> {
        let lane = self.lane();
        let scattered = self
            .device
            .write(&lane.packed, 0, data)
            .and_then(|()| self.copy(&lane, Copy::Scatter, block, &ranges))
            // Who is told that the bytes are in place may use them on another stream.
            .and_then(|()| self.device.fetch(&lane.packed, 0, 0)?.wait(&mut Vec::new()));
        scattered.map_err(|error| PoolError::Device(error.to_string()))
    }

    fn slots(&self, slot_count: u32) -> Result<Box<dyn RemoteSlots>, PoolError> {
        let slots = DeviceSlots::new(&*self.device, self.pool.clone(), self.shape.block_bytes(), slot_count);
        slots
            .map(|slots| Box::new(slots) as Box<dyn RemoteSlots>)
            .map_err(|error| PoolError::Device(error.to_string()))
    }
}
