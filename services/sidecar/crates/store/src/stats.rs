//! Counters and gauges.

use std::sync::atomic::{AtomicU64, Ordering};

/// A snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Blocks in memory.
    pub memory_blocks: u64,
    /// Bytes of memory in use.
    pub memory_used_bytes: u64,
    /// Bytes of memory allowed.
    pub memory_capacity_bytes: u64,
    /// Blocks on disk.
    pub disk_blocks: u64,
    /// Bytes of records that count.
    pub disk_live_bytes: u64,
    /// Bytes of files.
    pub disk_file_bytes: u64,
    /// Bytes of files allowed.
    pub disk_capacity_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of the table that finds blocks on disk.
    pub index_bytes: u64,
    /// Groups of records made durable together.
    pub commits: u64,
    /// Bytes written for persisted blocks.
    pub bytes_persisted: u64,
    /// Bytes moved by compaction.
    pub bytes_compacted: u64,
    /// Bytes of values read from disk.
    pub bytes_loaded: u64,
    /// Records that were damaged when they were read: misses.
    pub damaged: u64,
}

/// Counters that grow.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub commits: AtomicU64,
    pub bytes_persisted: AtomicU64,
    pub bytes_compacted: AtomicU64,
    pub bytes_loaded: AtomicU64,
    pub damaged: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
