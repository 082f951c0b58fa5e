//! Why a chunk or a profile was refused.

use kvasir_kernels::{KernelError, RansError};

/// Every way coding can end but well. Nothing here is a panic: chunks and profiles come from others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end too early.
    #[error("{what} needs {needed} bytes, {left} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes it takes.
        needed: usize,
        /// Bytes there are.
        left: usize,
    },
    /// Bytes are left over.
    #[error("{0} bytes follow the end")]
    Trailing(usize),
    /// A number that cannot be.
    #[error("{what} is {value}; at most {limit} is allowed")]
    Field {
        /// Which.
        what: &'static str,
        /// What was read.
        value: u64,
        /// What is allowed.
        limit: u64,
    },
    /// Not ours, or of another version.
    #[error("not a {0} of this version")]
    Magic(&'static str),
    /// The bytes are not those that were written.
    #[error("the checksum of the {0} does not match its bytes")]
    Checksum(&'static str),
    /// Made with another profile than the one at hand.
    #[error(
        "the chunk needs codec profile {needed}, this is {own}; start the sidecar with the same --codec-profile as its source"
    )]
    Profile {
        /// Hex.
        needed: String,
        /// Hex, or `none`.
        own: String,
    },
    /// KV of another model or type.
    #[error("{0} differs between the profile or chunk and this model")]
    Layout(&'static str),
    /// A level that the profile does not have.
    #[error("there is no level {0} in the profile")]
    Level(u8),
    /// Layers that the level cannot code apart.
    #[error("layers {begin}..{end}: level {level} codes whole groups of {group} layers")]
    Layers {
        /// First.
        begin: usize,
        /// One past the last.
        end: usize,
        /// Level.
        level: u8,
        /// Layers of a group.
        group: usize,
    },
    /// A lossy level was asked to encode an infinity or a NaN.
    #[error("the KV holds numbers that are not finite; send it raw or lossless")]
    NotFinite,
    /// Buffers that do not fit.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A stream that is no stream.
    #[error(transparent)]
    Rans(#[from] RansError),
}
