//! The seam between pulls and what codes their chunks: the host over its own memory, or a device over its.

use std::ops::Range;
use std::sync::Arc;

use kvasir_codec::{Chunk, ChunkRange, CodecError, KvShapeOfModel, Prepared};
use kvasir_cuda::DeviceError;
use kvasir_kernels::{KvShards, PoolError};

use crate::errors::CallError;
use crate::frames::{FrameRange, Pieces, within_block};

/// A chunk, and where its tokens lie in the pool, which has all heads of them in one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkPlace {
    /// Tokens and layers.
    pub range: ChunkRange,
    /// Blocks, and tokens within each, that make up the range's tokens in their order.
    pub pieces: Vec<(u32, Range<u32>)>,
}

impl ChunkPlace {
    /// What a frame holds of a sequence that lies in `blocks`.
    ///
    /// # Errors
    /// [`CallError::Internal`] when there is no block for a token.
    pub fn of_frame(frame: &FrameRange, pieces: &Pieces, block_size: u32, blocks: &[u32]) -> Result<Self, CallError> {
        let piece = |index: usize| {
            let (block, within) = within_block(&pieces.tokens(index..index + 1), block_size);
            let found = blocks.get(block).map(|block| (*block, within));
            found.ok_or_else(|| CallError::Internal(format!("a sequence has no block {block} for its tokens")))
        };
        Ok(Self {
            range: chunk_range(frame, pieces),
            pieces: frame.pieces.clone().map(piece).collect::<Result<_, _>>()?,
        })
    }

    /// Tokens of each piece.
    pub fn counts(&self) -> Vec<usize> {
        self.pieces.iter().map(|(_, tokens)| tokens.len()).collect()
    }

    /// Layers and heads, as a pool takes them.
    pub fn parts(&self, pool: &KvShards) -> (Range<u32>, Range<u32>) {
        let Range { start, end } = self.range.layers;
        (start.into()..end.into(), 0..pool.heads(0).len() as u32)
    }

    /// Bytes of the elements.
    ///
    /// # Errors
    /// [`PoolError`] when the pool has no such blocks, or they have other tokens than the range.
    pub fn byte_len(&self, pool: &KvShards) -> Result<usize, PoolError> {
        let (layers, heads) = self.parts(pool);
        let pieces = self
            .pieces
            .iter()
            .map(|(block, tokens)| pool.shards()[0].check(*block, tokens, &layers, &heads));
        let bytes = pieces.sum::<Result<usize, PoolError>>()?;
        let (expected, actual) = (self.range.token_count as usize, self.counts().iter().sum());
        if expected == actual {
            Ok(bytes)
        } else {
            Err(PoolError::DataLength { expected, actual })
        }
    }
}

/// The chunk that a frame is.
pub fn chunk_range(frame: &FrameRange, pieces: &Pieces) -> ChunkRange {
    let tokens = pieces.tokens(frame.pieces.clone());
    ChunkRange {
        token_begin: tokens.start,
        token_count: tokens.len() as u32,
        layers: frame.layers.start as u16..frame.layers.end as u16,
    }
}

/// An encoded chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedChunk {
    /// Header and payload.
    pub data: Vec<u8>,
    /// That which was asked, or lossless.
    pub level: u8,
    /// XXH3-128 of the elements, `[layer][K, V][kv_head][token][head_size]`, for the lossless level.
    pub elements_digest: Option<u128>,
}

/// Why a coder failed as a whole.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CoderError {
    /// Blocks that there are not.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// What no codec can code.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Codes chunks of one profile between a pool's blocks and bytes; both kinds write and read the same bytes. The elements of a call's chunks are
/// kept until the next one's, apart from the pool.
///
/// ```text
/// source  read: blocks ─▶ elements      encode: elements ─▶ bytes
/// sink    decode: bytes ─▶ elements     write: elements ─▶ blocks
/// ```
pub trait ChunkCoder: Send {
    /// Copies the elements of chunks. Blocks may change as soon as it returns.
    ///
    /// # Errors
    /// [`CoderError::Pool`], [`CoderError::Device`].
    fn read(&mut self, places: &[ChunkPlace]) -> Result<(), CoderError>;

    /// Takes elements from the caller, as if they had been read.
    ///
    /// # Errors
    /// [`CoderError::Device`].
    fn hold(&mut self, chunks: &[(ChunkRange, &[u8])]) -> Result<(), CoderError>;

    /// Encodes what was read, in its order; what no lossy level can encode becomes lossless.
    ///
    /// # Errors
    /// [`CoderError::Codec`] for a level or ranges that the profile has not, [`CoderError::Device`].
    fn encode(&mut self, level: u8) -> Result<Vec<EncodedChunk>, CoderError>;

    /// Decodes chunks. Of each that is lossless, the digest of its elements; or why it is refused.
    ///
    /// # Errors
    /// [`CoderError::Device`].
    fn decode(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Result<Option<u128>, CodecError>>, CoderError>;

    /// Writes the elements of a chunk that was decoded, by its index, to blocks. They are in place when it returns.
    ///
    /// # Errors
    /// [`CoderError::Pool`], [`CoderError::Device`].
    fn write(&mut self, index: usize, place: &ChunkPlace) -> Result<(), CoderError>;
}

/// Makes coders of the kind that suits a pool.
pub trait CodingSite: Send + Sync {
    /// A coder of one profile.
    ///
    /// # Errors
    /// [`CodecError::Layout`] when the profile is another model's.
    fn coder(&self, shape: &KvShapeOfModel, prepared: &Arc<Prepared>) -> Result<Box<dyn ChunkCoder>, CodecError>;

    /// Chunks that a call of a coder is best given. Larger: a device has work for all its cores; smaller: the first of them is ready sooner.
    fn chunks_at_once(&self) -> usize;
}
