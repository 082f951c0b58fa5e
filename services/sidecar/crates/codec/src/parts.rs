//! Chunks taken apart and put together without being coded: for coders on other devices, which write and read the same bytes.

use crate::bytes::Reader;
use crate::chunk::{CHUNK_HEADER_BYTES, Chunk, ChunkRange, FirstToken, LEVEL_LOSSLESS, LEVEL_RAW};
use crate::codec::Codec;
use crate::error::CodecError;
use crate::section::read_lengths;
use kvasir_kernels::{OutOfRange, PackedShape, packed_bits_len};
use std::ops::Range;

/// What a chunk consists of.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkParts {
    /// Sizes of its KV.
    pub shape: PackedShape,
    /// The elements of position 0, `[layer][K, V][kv_head][head_size]`, where a lossy level codes them apart.
    pub first: Option<Vec<u8>>,
    /// In layer order.
    pub sections: Vec<SectionParts>,
}

/// One section of a chunk. Ranges are of the payload's bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct SectionParts {
    /// Group of layers: for the lossless level the layer itself.
    pub group: usize,
    /// Layers it holds.
    pub layers: usize,
    /// What lay outside the tables; tokens and axes exist.
    pub beyond: Vec<OutOfRange>,
    /// Entropy-coded symbols.
    pub stream: Range<usize>,
    /// Bits that are kept as they are.
    pub tail: Range<usize>,
}

impl Codec {
    /// Sizes of a range's KV, and for each of its sections the group of layers and how many layers it holds.
    ///
    /// # Errors
    /// Those of [`Codec::encode`] that the range alone can cause.
    pub fn sections(&self, level: u8, range: &ChunkRange) -> Result<(PackedShape, Vec<(usize, usize)>), CodecError> {
        let shape = self.check(level, range)?;
        let each = self.layers_each(level)?;
        let layers = usize::from(range.layers.start)..usize::from(range.layers.end);
        let sections = layers.clone().step_by(each);
        let sections = sections.map(|layer| (layer / each, each.min(layers.end - layer)));
        Ok((shape, sections.collect()))
    }

    /// How a lossy chunk from position 0 on tells its first token, whose elements are `first`.
    ///
    /// # Errors
    /// [`CodecError::Level`] without a profile, [`CodecError::Kernel`] when `first` has another length.
    pub fn first_token(&self, range: &ChunkRange, first: &[u8]) -> Result<FirstToken, CodecError> {
        let shape = self.check(LEVEL_RAW, range)?;
        Ok(if self.is_first_token(&shape, range, first)? {
            FirstToken::Profile
        } else {
            FirstToken::Stored
        })
    }

    /// A chunk of `payload_bytes` bytes, of which all but the header are in place behind it in `bytes`: writes the header.
    ///
    /// # Errors
    /// [`CodecError::Level`] without a profile, [`CodecError::Truncated`], [`CodecError::Field`] when the payload is too long.
    pub fn seal(
        &self,
        level: u8,
        range: &ChunkRange,
        first_token: FirstToken,
        bytes: &mut [u8],
    ) -> Result<(), CodecError> {
        if bytes.len() < CHUNK_HEADER_BYTES {
            return Err(CodecError::Truncated {
                what: "chunk header",
                needed: CHUNK_HEADER_BYTES,
                left: bytes.len(),
            });
        }
        let prepared = self.prepared.as_ref().ok_or(CodecError::Level(level))?;
        let chunk = Chunk {
            level,
            first_token,
            profile: prepared.id(),
            fingerprint: self.shape.fingerprint,
            range: range.clone(),
            payload: &[],
        };
        crate::chunk::seal(bytes, 0, &chunk)
    }

    /// Where the parts of an encoded chunk lie. What may be wrong with lengths and exceptions is found here; streams are not looked into.
    ///
    /// # Errors
    /// As [`Codec::decode`]; [`CodecError::Level`] for raw chunks, which have no parts.
    pub fn parts(&self, chunk: &Chunk<'_>) -> Result<ChunkParts, CodecError> {
        if chunk.level == LEVEL_RAW {
            return Err(CodecError::Level(chunk.level));
        }
        let prepared = self.profile_of(chunk)?;
        let (shape, groups) = self.sections(chunk.level, &chunk.range)?;
        let mut reader = Reader(chunk.payload);
        let first = match chunk.level {
            LEVEL_LOSSLESS => None,
            _ => self.first_elements(chunk, &shape, &mut reader)?,
        };
        let mut sections = Vec::with_capacity(groups.len());
        for (group, layers) in groups {
            let own = PackedShape { layers, ..shape };
            let elements = own.width() * own.tokens;
            let (axes, tail) = match chunk.level {
                LEVEL_LOSSLESS => {
                    let extra = packed_bits_len(own.dtype.extra_bits(), elements);
                    (own.width(), elements * own.dtype.rest_bytes() + extra)
                }
                level => {
                    let group = &prepared.level(level)?.groups[group];
                    let bits = group.shifts().map(|shift| packed_bits_len(shift, own.tokens));
                    (group.axes.len(), bits.sum())
                }
            };
            let mut beyond = Vec::new();
            let stream = read_lengths(&mut reader, own.tokens, axes, &mut beyond)?;
            let stream_end = chunk.payload.len() - reader.0.len();
            reader.take(tail, "low bits")?;
            sections.push(SectionParts {
                group,
                layers,
                beyond,
                stream: stream_end - stream.len()..stream_end,
                tail: stream_end..stream_end + tail,
            });
        }
        reader.end()?;
        Ok(ChunkParts { shape, first, sections })
    }
}
