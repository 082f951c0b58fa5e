//! Chunks that a device codes where its pool lies: blocks are gathered and scattered there, and only encoded bytes pass by the host.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvasir_codec::{Chunk, ChunkRange, CodecError, KvShapeOfModel, LEVEL_LOSSLESS, Prepared};
use kvasir_cuda::ops::{Copy, KvPiece, kv_copy};
use kvasir_cuda::{Buffer, Device, DeviceError, DevicePool, Rooms};
use kvasir_cuda_codec::{CodingError, DeviceCodec, DeviceDigests, PackedChunk};
use kvasir_kernels::{KvShards, PoolError};

use crate::chunk_coder::{ChunkCoder, ChunkPlace, CoderError, CodingSite, EncodedChunk};
use crate::coders::THREADS;
use crate::host_coder::HostCoder;

/// Multiprocessors for each chunk of a call: its stream keeps one busy, the rest of its coding several.
const MULTIPROCESSORS_EACH: usize = 4;
/// Raw bytes of a call at most. Larger: a stranger's frame may take more of the device's memory, seven times as much; smaller: more is coded by
/// the host.
const BYTES_MAX: usize = 32 << 20;
/// Where chunks begin in packed memory: a multiple of what every kernel reads at once.
const ALIGNMENT: usize = 256;

/// Chunks that keep a device busy.
pub fn chunks_at_once(device: &dyn Device) -> usize {
    device.multiprocessors().div_ceil(MULTIPROCESSORS_EACH)
}

/// Coders of one device.
pub struct DeviceSite {
    pool: Arc<KvShards>,
    blocks: DevicePool,
    streams: Vec<Arc<dyn Device>>,
    next: AtomicUsize,
}

impl DeviceSite {
    /// Coders of `pool`, whose blocks lie on a device: each has a stream of its own.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the device gives no streams.
    pub fn new(pool: Arc<KvShards>, blocks: DevicePool, device: &dyn Device) -> Result<Self, DeviceError> {
        Ok(Self {
            pool,
            blocks,
            streams: (0..THREADS)
                .map(|_| device.another_stream())
                .collect::<Result<_, _>>()?,
            next: AtomicUsize::new(0),
        })
    }
}

impl CodingSite for DeviceSite {
    fn coder(&self, shape: &KvShapeOfModel, prepared: &Arc<Prepared>) -> Result<Box<dyn ChunkCoder>, CodecError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.streams.len();
        let codec = DeviceCodec::new(shape.clone(), Arc::clone(prepared)).map_err(|error| match error {
            CodingError::Codec(error) => error,
            CodingError::Device(_) => CodecError::Layout("the device"),
        })?;
        Ok(Box::new(DeviceCoder {
            device: Arc::clone(&self.streams[turn]),
            pool: Arc::clone(&self.pool),
            blocks: self.blocks.clone(),
            codec,
            digests: DeviceDigests::default(),
            memory: Rooms::default(),
            host: HostCoder::new(Arc::clone(&self.pool), shape, prepared)?,
            held: Held::ByHost,
        }))
    }

    fn chunks_at_once(&self) -> usize {
        self.streams.first().map_or(1, |device| chunks_at_once(&**device))
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Packed,
    Pieces,
}

/// The device codec over a pool on the same device. What the device has no memory for goes through the host's coder.
pub struct DeviceCoder {
    device: Arc<dyn Device>,
    pool: Arc<KvShards>,
    blocks: DevicePool,
    codec: DeviceCodec,
    digests: DeviceDigests,
    memory: Rooms<Use>,
    host: HostCoder,
    held: Held,
}

/// Where the elements of the last call's chunks are.
enum Held {
    ByHost,
    OnDevice {
        packed: Buffer,
        chunks: Vec<PackedChunk>,
        /// Bytes of each.
        lengths: Vec<usize>,
    },
}

impl DeviceCoder {
    /// Room for the elements of chunks; None where the device should not have them.
    fn room(&mut self, chunks: Vec<(ChunkRange, usize)>) -> Result<Option<(Buffer, Vec<PackedChunk>)>, DeviceError> {
        let mut offset = 0;
        let mut places = Vec::with_capacity(chunks.len());
        for (range, length) in chunks {
            places.push(PackedChunk {
                range,
                offset: offset as u64,
            });
            offset += length.next_multiple_of(ALIGNMENT);
        }
        if offset > BYTES_MAX {
            return Ok(None);
        }
        match self.memory.room(&*self.device, Use::Packed, offset) {
            Ok(packed) => Ok(Some((packed, places))),
            Err(error) => none_without_memory(error),
        }
    }

    /// Copies blocks to packed memory or back, and waits until that is done.
    fn copy(&mut self, copy: Copy, packed: &Buffer, chunks: &[(&ChunkPlace, u64)]) -> Result<(), DeviceError> {
        let shape = self.blocks.shape;
        let (mut pieces, mut layers_max) = (Vec::new(), 0);
        for (place, offset) in chunks {
            let mut before = 0;
            layers_max = layers_max.max(place.range.layers.len());
            for (block, tokens) in &place.pieces {
                let piece = KvPiece {
                    packed: offset / 2 + before * shape.head_size as u64,
                    packed_tokens: place.range.token_count,
                    block: *block,
                    token_begin: tokens.start,
                    token_count: tokens.len() as u32,
                    layer_begin: place.range.layers.start.into(),
                    layer_count: place.range.layers.len() as u32,
                    head_begin: 0,
                    head_count: shape.kv_head_count as u32,
                };
                pieces.extend(piece.to_bytes(&shape));
                before += tokens.len() as u64;
            }
        }
        let device = &*self.device;
        let list = self.memory.filled(device, Use::Pieces, &pieces)?;
        let count = pieces.len() / KvPiece::BYTES;
        kv_copy(
            device,
            copy,
            [&self.blocks.memory, packed, &list],
            &shape,
            count,
            layers_max,
        )?;
        // Who is told that it is done lets others have the blocks, on other streams.
        device.fetch(packed, 0, 0)?.wait(&mut Vec::new())
    }

    fn encode_here(
        &mut self,
        level: u8,
        packed: &Buffer,
        chunks: &[PackedChunk],
        lengths: &[usize],
    ) -> Result<Vec<EncodedChunk>, CoderError> {
        let mut encoded = Vec::with_capacity(chunks.len());
        for (index, found) in self
            .codec
            .encode(&*self.device, level, packed, chunks)?
            .into_iter()
            .enumerate()
        {
            let (used, data) = match found {
                Ok(data) => (level, data),
                Err(CodecError::NotFinite) => {
                    let own = &chunks[index..=index];
                    let mut found = self.codec.encode(&*self.device, LEVEL_LOSSLESS, packed, own)?;
                    (LEVEL_LOSSLESS, found.remove(0)?)
                }
                Err(error) => return Err(error.into()),
            };
            encoded.push(EncodedChunk {
                data,
                level: used,
                elements_digest: None,
            });
        }
        let stretch = |index: usize| chunks[index].offset..chunks[index].offset + lengths[index] as u64;
        let exact: Vec<usize> = (0..encoded.len())
            .filter(|index| encoded[*index].level == LEVEL_LOSSLESS)
            .collect();
        let stretches: Vec<Range<u64>> = exact.iter().copied().map(stretch).collect();
        let digests = self.digests.xxh3_128(&*self.device, packed, &stretches)?;
        for (index, digest) in exact.into_iter().zip(digests) {
            encoded[index].elements_digest = Some(digest);
        }
        Ok(encoded)
    }

    /// What each chunk decodes to in packed memory, or None where the host should decode them all.
    #[allow(clippy::type_complexity, reason = "as the trait has it")]
    fn decode_here(
        &mut self,
        chunks: &[Chunk<'_>],
    ) -> Result<Option<Vec<Result<Option<u128>, CodecError>>>, CoderError> {
        let length = |chunk: &Chunk<'_>| self.codec.byte_len(chunk.level, &chunk.range);
        let lengths: Vec<Result<usize, CodecError>> = chunks.iter().map(length).collect();
        // A chunk that cannot be decoded takes no room, and keeps its index.
        let known: Vec<usize> = lengths.iter().map(|length| length.clone().unwrap_or(0)).collect();
        let ranges = chunks.iter().map(|chunk| chunk.range.clone());
        let Some((packed, places)) = self.room(ranges.zip(known.iter().copied()).collect())? else {
            return Ok(None);
        };
        let good = (0..chunks.len()).filter(|index| lengths[*index].is_ok());
        let asked: Vec<_> = good
            .map(|index| (chunks[index].clone(), places[index].offset))
            .collect();
        let mut decoded = self.codec.decode(&*self.device, &asked, &packed)?.into_iter();
        let mut outcomes = Vec::with_capacity(chunks.len());
        for length in &lengths {
            let outcome = length.clone().map(|_| ());
            outcomes.push(outcome.and_then(|()| decoded.next().unwrap_or(Ok(()))).map(|()| None));
        }
        let exact: Vec<usize> = (0..chunks.len())
            .filter(|index| chunks[*index].level == LEVEL_LOSSLESS && outcomes[*index].is_ok())
            .collect();
        let stretch = |index: &usize| places[*index].offset..places[*index].offset + known[*index] as u64;
        let stretches: Vec<Range<u64>> = exact.iter().map(stretch).collect();
        let digests = self.digests.xxh3_128(&*self.device, &packed, &stretches)?;
        for (index, digest) in exact.into_iter().zip(digests) {
            outcomes[index] = Ok(Some(digest));
        }
        self.held = Held::OnDevice {
            packed,
            chunks: places,
            lengths: known,
        };
        Ok(Some(outcomes))
    }

    /// Hands elements that lie on the device to the host's coder.
    fn give_to_host(&mut self) -> Result<(), CoderError> {
        let Held::OnDevice {
            packed,
            chunks,
            lengths,
        } = std::mem::replace(&mut self.held, Held::ByHost)
        else {
            return Ok(());
        };
        let mut all = Vec::with_capacity(chunks.len());
        for (chunk, length) in chunks.iter().zip(lengths) {
            let mut elements = vec![0; length];
            self.device.read(&packed, chunk.offset as usize, &mut elements)?;
            all.push((chunk.range.clone(), elements));
        }
        let all: Vec<_> = all
            .iter()
            .map(|(range, elements)| (range.clone(), &elements[..]))
            .collect();
        self.host.hold(&all)
    }
}

impl ChunkCoder for DeviceCoder {
    fn read(&mut self, places: &[ChunkPlace]) -> Result<(), CoderError> {
        let sizes = places
            .iter()
            .map(|place| Ok((place.range.clone(), place.byte_len(&self.pool)?)));
        let sizes = sizes.collect::<Result<Vec<_>, PoolError>>()?;
        let lengths = sizes.iter().map(|(_, length)| *length).collect();
        self.held = Held::ByHost;
        let Some((packed, chunks)) = self.room(sizes)? else {
            return self.host.read(places);
        };
        let offsets = chunks.iter().map(|chunk| chunk.offset);
        let placed: Vec<_> = places.iter().zip(offsets).collect();
        self.copy(Copy::Gather, &packed, &placed)?;
        self.held = Held::OnDevice {
            packed,
            chunks,
            lengths,
        };
        Ok(())
    }

    fn hold(&mut self, chunks: &[(ChunkRange, &[u8])]) -> Result<(), CoderError> {
        self.held = Held::ByHost;
        let sizes = chunks.iter().map(|(range, elements)| (range.clone(), elements.len()));
        let Some((packed, places)) = self.room(sizes.collect())? else {
            return self.host.hold(chunks);
        };
        for ((_, elements), place) in chunks.iter().zip(&places) {
            self.device.write(&packed, place.offset as usize, elements)?;
        }
        self.held = Held::OnDevice {
            packed,
            chunks: places,
            lengths: chunks.iter().map(|(_, elements)| elements.len()).collect(),
        };
        Ok(())
    }

    fn encode(&mut self, level: u8) -> Result<Vec<EncodedChunk>, CoderError> {
        if let Held::OnDevice {
            packed,
            chunks,
            lengths,
        } = &self.held
        {
            let (packed, chunks, lengths) = (packed.clone(), chunks.clone(), lengths.clone());
            match self.encode_here(level, &packed, &chunks, &lengths) {
                Err(CoderError::Device(error)) => none_without_memory::<()>(error)?,
                outcome => return outcome,
            };
            self.give_to_host()?;
        }
        self.host.encode(level)
    }

    fn decode(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Result<Option<u128>, CodecError>>, CoderError> {
        self.held = Held::ByHost;
        let decoded = match self.decode_here(chunks) {
            Err(CoderError::Device(error)) => none_without_memory(error)?,
            outcome => outcome?,
        };
        match decoded {
            Some(decoded) => Ok(decoded),
            None => self.host.decode(chunks),
        }
    }

    fn write(&mut self, index: usize, place: &ChunkPlace) -> Result<(), CoderError> {
        let Held::OnDevice { packed, chunks, .. } = &self.held else {
            return self.host.write(index, place);
        };
        place.byte_len(&self.pool)?;
        let (packed, chunk) = (packed.clone(), chunks.get(index).cloned());
        let chunk = chunk.filter(|chunk| chunk.range == place.range);
        let chunk = chunk.ok_or(CodecError::Layout("the range that was decoded"))?;
        self.copy(Copy::Scatter, &packed, &[(place, chunk.offset)])?;
        Ok(())
    }
}

/// None when the device has no memory left, which the host still may have.
fn none_without_memory<T>(error: DeviceError) -> Result<Option<T>, DeviceError> {
    match error {
        DeviceError::OutOfMemory { bytes } => {
            tracing::warn!(bytes, "no memory on the device to code KV; the host codes it");
            Ok(None)
        }
        error => Err(error),
    }
}

impl From<CodingError> for CoderError {
    fn from(error: CodingError) -> Self {
        match error {
            CodingError::Codec(error) => Self::Codec(error),
            CodingError::Device(error) => Self::Device(error),
        }
    }
}
