//! KV memory that is not the CPU's.

use crate::kv_pool::PoolError;
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
}
