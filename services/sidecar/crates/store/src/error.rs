//! Every way a call ends without what was asked.

use std::path::PathBuf;

/// Why. Nothing here is a wrong block: a damaged one is a miss.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The memory tier has no room; drop something from memory first.
    #[error("{wanted} bytes do not fit into memory: {free} of {capacity} are free; drop blocks from memory first")]
    MemoryFull {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes free.
        free: u64,
        /// Bytes in all.
        capacity: u64,
    },
    /// The disk tier has no room; remove something first.
    #[error("{wanted} bytes do not fit on disk: {used} of {capacity} are used; remove blocks first")]
    DiskFull {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes in files, dead ones among them.
        used: u64,
        /// Bytes in all.
        capacity: u64,
    },
    /// The store was opened without a disk tier.
    #[error("this store has no disk tier; open it with a directory")]
    NoDisk,
    /// The block is not in memory (any more).
    #[error("the block is not in memory; insert it again")]
    NotInMemory,
    /// A value that no record can hold.
    #[error("a value has {bytes} bytes; at most {max} are allowed")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
    /// Something about the directory that this version cannot use.
    #[error("{path}: {message}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The operating system refused.
    #[error("{path}: {message}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        message: String,
    },
}

impl StoreError {
    /// Wraps an I/O error with its file.
    pub(crate) fn io(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            message: error.to_string(),
        }
    }
}
