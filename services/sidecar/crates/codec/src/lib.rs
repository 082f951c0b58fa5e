//! The KV codec: chunks of KV as bytes that travel or lie on a disk, and back.
//!
//! A chunk is the KV of some tokens in some layers, decodable by itself. Its level says how it is encoded: `raw`, `lossless`, or one of the
//! lossy levels of a [`Profile`], which is made for a model from its own KV ([`train`]) and shared by its id. Encoding and decoding give the
//! same bytes on every instruction set.
#![forbid(unsafe_code)]
// Loops over matrices are written by index, as the formulas are.
#![allow(clippy::needless_range_loop)]

mod bytes;
mod chunk;
mod codec;
mod eigen;
mod error;
mod lossless;
mod lossy;
mod matrices;
mod parts;
mod profile;
mod profile_file;
mod section;
pub mod train;

pub use chunk::{
    CHUNK_HEADER_BYTES, Chunk, ChunkRange, FirstToken, LEVEL_LOSSLESS, LEVEL_LOSSY_FROM, LEVEL_RAW, TOKENS_MAX,
};
pub use codec::{Codec, KvShapeOfModel, Prepared};
pub use error::CodecError;
pub use matrices::Matrices;
pub use parts::{ChunkParts, SectionParts};
pub use profile::{Accuracy, CodeGroup, ExponentTables, Level, Profile, ProfileId, Rotation, RotationGroup};
