//! The ways in which a KV pool refuses.

/// Why a pool call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The block size is not supported.
    #[error("block_size is {0}; use 16, 32 or 64")]
    BlockSize(usize),
    /// The heads are not divided evenly.
    #[error("{kv_head_count} KV heads cannot be divided among {shard_count} shards; use a divisor of {kv_head_count}")]
    Shards {
        /// Shards asked for.
        shard_count: usize,
        /// KV heads of the model.
        kv_head_count: usize,
    },
    /// Nothing fits.
    #[error("{bytes} bytes of KV hold no block: one takes {block_bytes} bytes")]
    TooSmall {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes of one block.
        block_bytes: usize,
    },
    /// The operating system has not that much.
    #[error("the system refused {bytes} bytes for KV; ask for fewer")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
    },
    /// No such block.
    #[error("block {block} does not exist: the pool has {block_count}")]
    UnknownBlock {
        /// Block asked for.
        block: u32,
        /// Blocks there are.
        block_count: u32,
    },
    /// No such host slot.
    #[error("slot {slot} does not exist: the swap space has {slot_count}")]
    UnknownSlot {
        /// Slot asked for.
        slot: u32,
        /// Slots there are.
        slot_count: u32,
    },
    /// Tokens, layers or heads outside the block.
    #[error("{what} {begin}..{end} are outside 0..{limit}, or empty")]
    Range {
        /// `tokens`, `layers` or `heads`.
        what: &'static str,
        /// First.
        begin: u32,
        /// One past the last.
        end: u32,
        /// One past the largest allowed.
        limit: usize,
    },
    /// A block would be read and written at once, or written twice.
    #[error("block {block} would be read and written at once, or written twice; use other blocks")]
    Overlap {
        /// The block.
        block: u32,
    },
    /// The device that has the memory failed.
    #[error("KV on the device: {0}")]
    Device(String),
    /// The data is not as long as its ranges say.
    #[error("{actual} bytes of KV data for ranges that take {expected}")]
    DataLength {
        /// Bytes that the ranges take.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
}
