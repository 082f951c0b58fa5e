//! The pool's blocks as transfers see them: gathered and scattered by kernels, through packed memory on the device.

use crate::device::{Buffer, Device, DeviceError};
use crate::ops::{Copy, KvPiece, PoolShape, kv_copy};
use kvasir_kernels::{PoolError, RemoteKv};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Memory of the pool on a device, with the stream that transfers use.
pub struct DeviceKv {
    device: Arc<dyn Device>,
    pool: Buffer,
    shape: PoolShape,
    /// One transfer at a time packs or unpacks a block here.
    staging: Mutex<Staging>,
}

struct Staging {
    packed: Buffer,
    piece: Buffer,
}

impl DeviceKv {
    /// Transfers of `pool` by `device`, which may be another stream than the engine's.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new(device: Arc<dyn Device>, pool: Buffer, shape: PoolShape) -> Result<Self, DeviceError> {
        let staging = Staging {
            packed: device.allocate(shape.block_bytes())?,
            piece: device.allocate(32)?,
        };
        Ok(Self {
            device,
            pool,
            shape,
            staging: Mutex::new(staging),
        })
    }

    fn copy(
        &self,
        staging: &Staging,
        copy: Copy,
        block: u32,
        [tokens, layers, heads]: &[Range<u32>; 3],
    ) -> Result<(), DeviceError> {
        let piece = KvPiece {
            packed: 0,
            block,
            token_begin: tokens.start,
            token_count: tokens.end - tokens.start,
            layer_begin: layers.start,
            layer_count: layers.end - layers.start,
            head_begin: heads.start,
            head_count: heads.end - heads.start,
        };
        self.device.write(&staging.piece, 0, &piece.to_bytes(&self.shape))?;
        let memory = [&self.pool, &staging.packed, &staging.piece];
        kv_copy(&*self.device, copy, memory, &self.shape, 1, layers.len())
    }
}

impl RemoteKv for DeviceKv {
    fn gather(&self, block: u32, ranges: [Range<u32>; 3], length: usize, out: &mut Vec<u8>) -> Result<(), PoolError> {
        let staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let before = out.len();
        let gathered = self.copy(&staging, Copy::Gather, block, &ranges).and_then(|()| {
            out.resize(before + length, 0);
            self.device.read(&staging.packed, 0, &mut out[before..])
        });
        gathered.map_err(|error| {
            out.truncate(before);
            PoolError::Device(error.to_string())
        })
    }

    fn scatter(&self, block: u32, ranges: [Range<u32>; 3], data: &[u8]) -> Result<(), PoolError> {
        let staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let scattered = self
            .device
            .write(&staging.packed, 0, data)
            .and_then(|()| self.copy(&staging, Copy::Scatter, block, &ranges))
            // Who is told that the bytes are in place may use them on another stream.
            .and_then(|()| self.device.read(&staging.packed, 0, &mut []));
        scattered.map_err(|error| PoolError::Device(error.to_string()))
    }
}
