//! What a kernel knows of a section: `CodecSection` of kernels/codec.cuh.

use kvasir_codec::ChunkRange;
use kvasir_cuda::Args;
use kvasir_kernels::{KvDtype, PackedShape};

/// No elements of a first token.
pub(crate) const NONE: u64 = u64::MAX;

/// Fields as there.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Section {
    pub(crate) packed: u64,
    pub(crate) stream: u64,
    pub(crate) tail: u64,
    pub(crate) first: u64,
    pub(crate) stream_bytes: u32,
    pub(crate) gap: u32,
    pub(crate) token_begin: u32,
    pub(crate) token_count: u32,
    pub(crate) group: u32,
    pub(crate) head_count: u32,
    pub(crate) axis_begin: u32,
    pub(crate) axis_count: u32,
    pub(crate) channel_begin: u32,
    pub(crate) plane_begin: u32,
    pub(crate) plane_count: u32,
}

impl Section {
    /// A section of `shape`, whose KV begins at byte `packed`.
    pub(crate) fn new(range: &ChunkRange, shape: &PackedShape, packed: u64) -> Self {
        Self {
            packed,
            first: NONE,
            token_begin: range.token_begin,
            token_count: range.token_count,
            head_count: (shape.layers * 2 * shape.kv_heads) as u32,
            ..Self::default()
        }
    }

    fn to_bytes(self) -> Vec<u8> {
        let offsets = [self.packed, self.stream, self.tail, self.first];
        let counts = [
            self.stream_bytes,
            self.gap,
            self.token_begin,
            self.token_count,
            self.group,
            self.head_count,
            self.axis_begin,
            self.axis_count,
            self.channel_begin,
            self.plane_begin,
            self.plane_count,
            0,
        ];
        let args = offsets.into_iter().fold(Args::new(), Args::u64);
        counts.into_iter().fold(args, Args::u32).finish()
    }
}

/// All of them, as a kernel reads them.
pub(crate) fn bytes_of(sections: &[Section]) -> Vec<u8> {
    sections.iter().flat_map(|section| section.to_bytes()).collect()
}

/// `CodecDtype`.
pub(crate) fn dtype_code(dtype: KvDtype) -> u32 {
    match dtype {
        KvDtype::F32 => 0,
        KvDtype::F16 => 1,
        KvDtype::Bf16 => 2,
    }
}
