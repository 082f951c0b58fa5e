//! The codec's memory on a device, and what both directions share.

use crate::launch::{Run, Turns};
use crate::rotation::upload;
use crate::section::{Section, bytes_of, dtype_code};
use crate::tables::{Kind, LevelTables};
use kvasir_codec::{ChunkRange, Codec, CodecError, KvShapeOfModel, LEVEL_LOSSLESS, LEVEL_RAW, Prepared};
use kvasir_cuda::{Buffer, Device, DeviceError, Rooms};
use kvasir_kernels::{KeyTurns, PackedShape, RANS_LANES, column_stride};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Exceptions of a section that have room on the device. Larger: memory; smaller: more chunks of unusual KV are encoded by the host.
const BEYOND_MAX: usize = 4096;
/// Positions that the device has turns of. Larger: memory, half a kilobyte each at 64 frequencies; smaller: longer texts are coded by the host.
const POSITIONS_MAX: u64 = 1 << 20;

/// Why a call failed as a whole.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CodingError {
    /// What was asked cannot be coded, here or elsewhere.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// KV of some tokens and layers in the device's memory.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedChunk {
    /// Which.
    pub range: ChunkRange,
    /// Where it begins, `[layer][K, V][kv_head][token][head_size]`, in bytes; a multiple of 4.
    pub offset: u64,
}

/// What lies in the memory that is kept between calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    Sections,
    Columns,
    Along,
    Content,
    Scales,
    High,
    Low,
    Words,
    WordBegins,
    States,
    Counts,
    Totals,
    Beyond,
    Begins,
    Payload,
    Marks,
    First,
    Exceptions,
}

/// Encodes and decodes chunks on one device, always the same one. A call uses about 14 bytes for each element that it codes.
pub struct DeviceCodec {
    pub(crate) codec: Codec,
    pub(crate) shape: KvShapeOfModel,
    prepared: Arc<Prepared>,
    levels: BTreeMap<u8, Arc<LevelTables>>,
    memory: Rooms<Use>,
    turns: Option<Arc<Turns>>,
}

impl DeviceCodec {
    /// A codec of a model's KV.
    ///
    /// # Errors
    /// As [`Codec::new`].
    pub fn new(shape: KvShapeOfModel, prepared: Arc<Prepared>) -> Result<Self, CodingError> {
        let codec = Codec::new(shape.clone(), Some(Arc::clone(&prepared)))?;
        Ok(Self {
            codec,
            shape,
            prepared,
            levels: BTreeMap::new(),
            memory: Rooms::default(),
            turns: None,
        })
    }

    /// Bytes of the elements of a range that a level can code.
    ///
    /// # Errors
    /// As those of [`kvasir_codec::Codec::encode`] that the range alone can cause.
    pub fn byte_len(&self, level: u8, range: &ChunkRange) -> Result<usize, CodecError> {
        Ok(self.codec.sections(level, range)?.0.byte_len())
    }

    /// A level's tables, uploaded when they are first asked for.
    pub(crate) fn level(&mut self, device: &dyn Device, level: u8) -> Result<Arc<LevelTables>, CodingError> {
        if level == LEVEL_RAW {
            return Err(CodecError::Level(level).into());
        }
        if let Some(tables) = self.levels.get(&level) {
            return Ok(Arc::clone(tables));
        }
        let tables = Arc::new(LevelTables::new(device, &self.prepared, level)?);
        self.levels.insert(level, Arc::clone(&tables));
        Ok(tables)
    }

    /// Memory of at least `bytes`, with whatever it held.
    pub(crate) fn room(&mut self, device: &dyn Device, which: Use, bytes: usize) -> Result<Buffer, DeviceError> {
        self.memory.room(device, which, bytes)
    }

    /// The same, holding `content`.
    pub(crate) fn filled(&mut self, device: &dyn Device, which: Use, content: &[u8]) -> Result<Buffer, DeviceError> {
        self.memory.filled(device, which, content)
    }

    /// Cosines and sines of the sections' positions, from the host's own sine: a device's differs in the last place.
    pub(crate) fn turns(&mut self, device: &dyn Device, sections: &[Section]) -> Result<Arc<Turns>, DeviceError> {
        let ends = sections.iter().map(|one| one.token_begin + one.token_count);
        let end = ends.max().unwrap_or(0) as usize;
        if let Some(turns) = self.turns.as_ref().filter(|turns| end <= turns.stride) {
            return Ok(Arc::clone(turns));
        }
        // A text is coded from front to back: more is made than is asked for now.
        let tokens = end.next_power_of_two().max(RANS_LANES);
        let mut turns = KeyTurns::default();
        turns.fill(&self.shape.inverse_frequencies, 0, tokens);
        let bytes: Vec<u8> = turns
            .values()
            .into_iter()
            .flatten()
            .flat_map(|value| value.to_ne_bytes())
            .collect();
        let turns = Arc::new(Turns {
            values: upload(device, &bytes)?,
            half: self.shape.inverse_frequencies.len(),
            stride: column_stride(tokens),
        });
        self.turns = Some(Arc::clone(&turns));
        Ok(turns)
    }

    /// The sections of a chunk, without what is known of its bytes.
    pub(crate) fn sections(
        &self,
        level: u8,
        tables: &LevelTables,
        chunk: &PackedChunk,
    ) -> Result<Vec<Section>, CodecError> {
        let (shape, groups) = self.codec.sections(level, &chunk.range)?;
        let mut packed = chunk.offset;
        let mut all = Vec::with_capacity(groups.len());
        for (group, layers) in groups {
            let own = PackedShape { layers, ..shape };
            let place = tables
                .groups
                .get(group)
                .ok_or(CodecError::Layout("the number of layers"))?;
            all.push(Section {
                group: group as u32,
                axis_begin: place.axis_begin,
                axis_count: place.axis_count,
                channel_begin: place.channel_begin,
                plane_begin: place.plane_begin,
                plane_count: place.plane_count,
                ..Section::new(&chunk.range, &own, packed)
            });
            packed += own.byte_len() as u64;
        }
        Ok(all)
    }

    /// What launchers need to know of these sections, which lie in `buffer`.
    pub(crate) fn run<'a>(
        device: &'a dyn Device,
        shape: &KvShapeOfModel,
        level: &'a LevelTables,
        sections: &[Section],
        buffer: &'a Buffer,
    ) -> Run<'a> {
        let lossless = matches!(level.kind, Kind::Lossless { .. });
        let most = |of: fn(&Section) -> u32| sections.iter().map(of).max().unwrap_or(0) as usize;
        let (tokens_max, heads_max) = (most(|one| one.token_count), most(|one| one.head_count));
        let stride = column_stride(tokens_max);
        Run {
            device,
            level,
            sections: buffer,
            section_count: sections.len(),
            tokens_max,
            heads_max,
            lossless,
            stride,
            head_size: shape.head_size,
            kv_heads: shape.kv_head_count,
            dtype: dtype_code(shape.dtype),
            counts_each: 1 + if lossless { heads_max * stride } else { level.axes_max },
            beyond_max: BEYOND_MAX.min(level.axes_max * stride),
        }
    }

    /// Uploads the sections' descriptions.
    pub(crate) fn describe(&mut self, device: &dyn Device, sections: &[Section]) -> Result<Buffer, DeviceError> {
        self.filled(device, Use::Sections, &bytes_of(sections))
    }
}

impl Run<'_> {
    /// Numbers of a plane's slots, all sections.
    pub(crate) fn plane(&self) -> usize {
        self.section_count * self.level.axes_max * self.stride
    }

    /// Bytes of the low planes.
    pub(crate) fn low_bytes(&self) -> usize {
        self.section_count * self.level.lows_max * self.stride
    }

    /// Bytes of the states.
    pub(crate) fn state_bytes(&self) -> usize {
        self.section_count * RANS_LANES * 4
    }
}

/// Whether a chunk lies beyond the positions that the device has turns of.
pub(crate) fn is_far(range: &ChunkRange) -> bool {
    u64::from(range.token_begin) + u64::from(range.token_count) > POSITIONS_MAX
}

/// Whether a level is one of the profile's lossy ones.
pub(crate) fn is_lossy(level: u8) -> bool {
    level > LEVEL_LOSSLESS
}
