//! The `store` role: no model, no device; blocks by their hashes, in memory and on disk.
//!
//! A pull in or out goes through staging blocks of a small KV pool, so that both ends are the same code as between workers: frames, digests,
//! leases and all. It costs one more copy of each block.

mod serve;
mod service;
mod staging;

pub use serve::serve_store;
