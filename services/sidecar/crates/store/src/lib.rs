//! Content-addressed KV blocks in two tiers of one machine: memory, and append-only segment files.
//!
//! ```text
//!             insert                      persist                        compaction
//!  receiver ─────────▶ memory (extents) ─────────▶ active segment ─seal─▶ sealed segments ──▶ active segment
//!                        │        ▲                                          │
//!                        └─ get   └──────────────── load (verified) ─────────┘
//! ```
//!
//! The crate is mechanism. It never chooses a victim: it refuses what does not fit, and its owner says what leaves memory, what is written,
//! and what is removed. What it decides alone changes no answer: where bytes lie, and when they are moved together.
//!
//! **What holds after a crash.** A block is *acknowledged* when its `persist` was answered: its record was written and `fdatasync` returned,
//! together with those of the same group. After `kill -9` or a power cut at any moment a store opens with every acknowledged block that was
//! not removed. Whatever else it finds it either proves whole or leaves out. Every read compares the record's checksum, its key and the
//! digest of the value, so that a damaged block is a miss and never a wrong answer. A removal is durable when it was answered.
//!
//! **Formats.** Segment files begin with a header of 4 KiB; records begin at multiples of 4 KiB, so that direct I/O may be used. Numbers are
//! little endian. `record.rs` and `segment.rs` draw them. A sealed segment has a catalog beside it, which only saves reading the segment.
#![forbid(unsafe_code)]

mod aligned;
mod arena;
mod catalog;
mod compaction;
mod error;
mod index;
mod memory;
mod object;
mod record;
mod recovery;
mod segment;
mod segments;
mod stats;
mod store;
mod writer;

pub use arena::{Arena, Value, ValueBuffer};
pub use error::StoreError;
pub use index::{Index, Location};
pub use object::{Accuracy, Key, Metadata, Object};
pub use stats::StoreStats;
pub use store::{Found, Recovered, Store, StoreOptions};
