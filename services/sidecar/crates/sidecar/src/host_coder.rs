//! Chunks that the host codes, whatever memory the pool is.

use std::sync::Arc;

use kvasir_codec::{Chunk, ChunkRange, Codec, CodecError, KvShapeOfModel, LEVEL_LOSSLESS, Prepared};
use kvasir_kernels::{KvShards, PoolError};
use xxhash_rust::xxh3::xxh3_128;

use crate::chunk_coder::{ChunkCoder, ChunkPlace, CoderError, CodingSite, EncodedChunk};
use crate::packing;

/// Coders of the host.
pub struct HostSite(pub Arc<KvShards>);

impl CodingSite for HostSite {
    fn coder(&self, shape: &KvShapeOfModel, prepared: &Arc<Prepared>) -> Result<Box<dyn ChunkCoder>, CodecError> {
        Ok(Box::new(HostCoder::new(Arc::clone(&self.0), shape, prepared)?))
    }

    fn chunks_at_once(&self) -> usize {
        1
    }
}

/// The CPU codec over a pool.
pub struct HostCoder {
    pool: Arc<KvShards>,
    codec: Codec,
    chunks: Vec<(ChunkRange, Vec<u8>)>,
}

impl HostCoder {
    /// A coder of one profile.
    ///
    /// # Errors
    /// [`CodecError::Layout`] when the profile is another model's.
    pub fn new(pool: Arc<KvShards>, shape: &KvShapeOfModel, prepared: &Arc<Prepared>) -> Result<Self, CodecError> {
        Ok(Self {
            pool,
            codec: Codec::new(shape.clone(), Some(Arc::clone(prepared)))?,
            chunks: Vec::new(),
        })
    }

    /// Bytes of a token of a head.
    fn run(&self) -> usize {
        let shape = self.pool.shape();
        shape.head_size * shape.dtype.byte_size()
    }
}

impl ChunkCoder for HostCoder {
    fn read(&mut self, places: &[ChunkPlace]) -> Result<(), CoderError> {
        self.chunks.clear();
        for place in places {
            let mut pieces = Vec::new();
            for (block, tokens) in &place.pieces {
                let (layers, heads) = place.parts(&self.pool);
                self.pool.shards()[0].gather(*block, tokens.clone(), layers, heads, &mut pieces)?;
            }
            let packed = packing::joined(&pieces, &place.counts(), self.run());
            self.chunks.push((place.range.clone(), packed));
        }
        Ok(())
    }

    fn hold(&mut self, chunks: &[(ChunkRange, &[u8])]) -> Result<(), CoderError> {
        let owned = |(range, packed): &(ChunkRange, &[u8])| (range.clone(), packed.to_vec());
        self.chunks = chunks.iter().map(owned).collect();
        Ok(())
    }

    fn encode(&mut self, level: u8) -> Result<Vec<EncodedChunk>, CoderError> {
        let Self { codec, chunks, .. } = self;
        let one = |(range, packed): &(ChunkRange, Vec<u8>)| {
            let (mut data, mut used) = (Vec::with_capacity(packed.len()), level);
            if let Err(error) = codec.encode(used, range, packed, &mut data) {
                if error != CodecError::NotFinite {
                    return Err(error.into());
                }
                used = LEVEL_LOSSLESS;
                codec.encode(used, range, packed, &mut data)?;
            }
            Ok(EncodedChunk {
                data,
                level: used,
                elements_digest: (used == LEVEL_LOSSLESS).then(|| xxh3_128(packed)),
            })
        };
        chunks.iter().map(one).collect()
    }

    fn decode(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Result<Option<u128>, CodecError>>, CoderError> {
        self.chunks.clear();
        let one = |chunk: &Chunk<'_>| {
            let mut packed = Vec::new();
            let decoded = self.codec.decode(chunk, &mut packed);
            let digest = (chunk.level == LEVEL_LOSSLESS).then(|| xxh3_128(&packed));
            self.chunks.push((chunk.range.clone(), packed));
            decoded.map(|()| digest)
        };
        Ok(chunks.iter().map(one).collect())
    }

    fn write(&mut self, index: usize, place: &ChunkPlace) -> Result<(), CoderError> {
        let packed = self.chunks.get(index).map_or(&[][..], |(_, packed)| packed);
        let expected = place.byte_len(&self.pool)?;
        if packed.len() != expected {
            let actual = packed.len();
            return Err(PoolError::DataLength { expected, actual }.into());
        }
        let pieces = packing::split(packed, &place.counts(), self.run());
        let mut rest = &pieces[..];
        for (block, tokens) in &place.pieces {
            let own = rest.split_off(..tokens.len() * (packed.len() / place.range.token_count as usize));
            let (layers, heads) = place.parts(&self.pool);
            self.pool.shards()[0].scatter(*block, tokens.clone(), layers, heads, own.unwrap_or_default())?;
        }
        Ok(())
    }
}
