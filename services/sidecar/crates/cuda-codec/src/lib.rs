//! The KV codec on a CUDA device: chunks between packed KV in the device's memory and bytes on the host, the same bytes as the CPU codec's.
//!
//! ```text
//! encode  packed ─▶ columns ─▶ (rotated) ─▶ symbols ─▶ streams ─▶ payload ─▶ host: header and checksum
//! decode  host: header, checksum, lengths ─▶ payload ─▶ symbols ─▶ columns ─▶ (rotated back) ─▶ packed
//! ```
//!
//! What the host does is what takes no time: it reads lengths, which are bounded before a kernel sees them, and exceptions, which are few. What
//! a device is not made for, a chunk of more exceptions than slots or exceptions out of order, goes through the CPU codec.
#![forbid(unsafe_code)]

mod coder;
mod decode;
mod digest;
mod encode;
mod launch;
mod rotation;
mod section;
mod tables;

pub use coder::{CodingError, DeviceCodec, PackedChunk};
pub use digest::DeviceDigests;
