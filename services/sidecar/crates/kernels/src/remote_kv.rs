//! KV memory that is not the CPU's.

use crate::kv_pool::PoolError;
use crate::swap_space::{BlockGroup, SwapDirection};
use std::ops::Range;

/// KV memory of another device, which only its own kernels and transfers reach. Ranges are of tokens, layers and heads and were checked; data is
/// packed as by [`crate::KvPool::gather`].
pub trait RemoteKv: Send + Sync {
    /// Appends the KV of some tokens of a block, `length` bytes, to `out`.
    ///
    /// # Errors
    /// [`PoolError::Device`]; `out` is then unchanged.
    fn gather(&self, block: u32, ranges: [Range<u32>; 3], length: usize, out: &mut Vec<u8>) -> Result<(), PoolError>;

    /// Writes the KV of some tokens of a block.
    ///
    /// # Errors
    /// [`PoolError::Device`].
    fn scatter(&self, block: u32, ranges: [Range<u32>; 3], data: &[u8]) -> Result<(), PoolError>;

    /// Host memory for so many blocks, which is taken when the first of them comes.
    ///
    /// # Errors
    /// [`PoolError::Device`].
    fn slots(&self, slot_count: u32) -> Result<Box<dyn RemoteSlots>, PoolError>;
}

/// Host memory that another device copies blocks to and from.
pub trait RemoteSlots: Send + Sync {
    /// Copies groups, which were checked; returns when the bytes are in place.
    ///
    /// # Errors
    /// [`PoolError::OutOfMemory`] when the host gives no memory for the slots, [`PoolError::Device`].
    fn copy(&self, direction: SwapDirection, groups: &[BlockGroup]) -> Result<(), PoolError>;
}
