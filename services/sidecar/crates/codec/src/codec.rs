//! Encoding and decoding chunks.

use crate::bytes::Reader;
use crate::chunk::{
    CHUNK_HEADER_BYTES, Chunk, ChunkRange, FirstToken, LEVEL_LOSSLESS, LEVEL_LOSSY_FROM, LEVEL_RAW, TOKENS_MAX, seal,
};
use crate::error::CodecError;
use crate::lossless::Lossless;
use crate::lossy::{Columns, Lossy};
use crate::matrices::Matrices;
use crate::profile::{Level, Profile, ProfileId};
use crate::section::Scratch;
use kvasir_kernels::{Isa, KeyTurns, KvDtype, PackedShape, column_stride, columns_from_packed, packed_from_columns};
use std::sync::Arc;

/// How far the first token may lie from the profile's, as a share of its length in each layer, and still be taken for it.
const FIRST_TOKEN_TOLERANCE: f32 = 0.01;

/// The KV of the model at hand.
#[derive(Debug, Clone, PartialEq)]
pub struct KvShapeOfModel {
    /// Element type of the pool.
    pub dtype: KvDtype,
    /// Layers.
    pub layer_count: usize,
    /// KV heads of a layer.
    pub kv_head_count: usize,
    /// Elements of a head.
    pub head_size: usize,
    /// Of the rotary embedding, of the keys' rotated half.
    pub inverse_frequencies: Vec<f32>,
    /// Layout fingerprint.
    pub fingerprint: [u8; 16],
}

/// A profile made ready for coding; shared by all threads.
pub struct Prepared {
    profile: Profile,
    id: ProfileId,
    /// Of each level, of each group.
    matrices: Vec<Vec<Matrices>>,
    /// Symbols of each table of exponents.
    exponent_counts: Vec<u8>,
}

impl Prepared {
    /// Packs the levels' matrices.
    ///
    /// # Errors
    /// Those of [`Profile::check`], and matrices that do not fit.
    pub fn new(profile: Profile, id: ProfileId) -> Result<Self, CodecError> {
        profile.check()?;
        let of_level = |level: &Level| -> Result<Vec<Matrices>, CodecError> {
            let groups = (0..level.groups.len()).filter(|_| level.rotated);
            groups.map(|index| Matrices::new(&profile, level, index)).collect()
        };
        let matrices: Result<Vec<_>, _> = profile.levels.iter().map(of_level).collect();
        let tables = profile.exponents.tables.iter();
        Ok(Self {
            matrices: matrices?,
            exponent_counts: tables.map(|table| table.symbol_count() as u8).collect(),
            profile,
            id,
        })
    }

    /// What it was made from.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The rotations of a level's groups of layers; none for levels without rotation, and those that there are not.
    pub fn matrices(&self, level: u8) -> &[Matrices] {
        let index = level.checked_sub(LEVEL_LOSSY_FROM).map(usize::from);
        index
            .and_then(|index| self.matrices.get(index))
            .map_or(&[], Vec::as_slice)
    }

    /// Its id.
    pub fn id(&self) -> ProfileId {
        self.id
    }
}

/// Encodes and decodes chunks of one model's KV on the caller's thread. Keeps its buffers between calls.
pub struct Codec {
    isa: Isa,
    pub(crate) shape: KvShapeOfModel,
    pub(crate) prepared: Option<Arc<Prepared>>,
    scratch: Scratch,
    columns: Columns,
}

impl Codec {
    /// A codec; without a profile it knows only [`LEVEL_RAW`].
    ///
    /// # Errors
    /// [`CodecError::Layout`] when the profile is another model's.
    pub fn new(shape: KvShapeOfModel, prepared: Option<Arc<Prepared>>) -> Result<Self, CodecError> {
        Self::with_isa(Isa::detect(), shape, prepared)
    }

    /// The same on a chosen instruction set, for comparisons.
    ///
    /// # Errors
    /// As [`Codec::new`].
    pub fn with_isa(isa: Isa, shape: KvShapeOfModel, prepared: Option<Arc<Prepared>>) -> Result<Self, CodecError> {
        if let Some(prepared) = &prepared {
            let own = (shape.layer_count, shape.kv_head_count, shape.head_size);
            let profile = &prepared.profile;
            if own != (profile.layer_count, profile.kv_head_count, profile.head_size) {
                return Err(CodecError::Layout("the shape of the KV"));
            }
        }
        let (scratch, columns) = Default::default();
        Ok(Self {
            isa,
            shape,
            prepared,
            scratch,
            columns,
        })
    }

    /// Number of levels, [`LEVEL_RAW`] included.
    pub fn level_count(&self) -> u8 {
        let Some(prepared) = &self.prepared else { return 1 };
        LEVEL_LOSSY_FROM + prepared.profile.levels.len() as u8
    }

    /// Layers that a level codes together: chunks begin and end at multiples of this.
    ///
    /// # Errors
    /// [`CodecError::Level`].
    pub fn layers_each(&self, level: u8) -> Result<usize, CodecError> {
        if level == LEVEL_RAW {
            return Ok(1);
        }
        let prepared = self.prepared.as_ref().ok_or(CodecError::Level(level))?;
        Ok(if level == LEVEL_LOSSLESS {
            1
        } else {
            prepared.profile.layers_each(prepared.level(level)?.rotated)
        })
    }

    /// Appends the chunk of `packed`, `[layer][K, V][kv_head][token][head_size]`, to `out`, which is as it was after an error.
    ///
    /// # Errors
    /// [`CodecError::Level`], [`CodecError::Layers`], [`CodecError::Field`], [`CodecError::NotFinite`] from lossy levels,
    /// [`CodecError::Kernel`] when `packed` has another length than its range.
    pub fn encode(
        &mut self,
        level: u8,
        range: &ChunkRange,
        packed: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let at = out.len();
        let outcome = self.encode_after(level, range, packed, at, out);
        if outcome.is_err() {
            out.truncate(at);
        }
        outcome
    }

    fn encode_after(
        &mut self,
        level: u8,
        range: &ChunkRange,
        packed: &[u8],
        at: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let shape = self.check(level, range)?;
        if packed.len() != shape.byte_len() {
            let (expected, actual) = (shape.byte_len(), packed.len());
            return Err(kvasir_kernels::KernelError::ShapeMismatch {
                what: "packed KV",
                expected,
                actual,
            }
            .into());
        }
        out.extend_from_slice(&[0; CHUNK_HEADER_BYTES]);
        let mut chunk = Chunk {
            level,
            first_token: FirstToken::Absent,
            profile: ProfileId::default(),
            fingerprint: self.shape.fingerprint,
            range: range.clone(),
            payload: &[],
        };
        if level == LEVEL_RAW {
            out.extend_from_slice(packed);
            return seal(out, at, &chunk);
        }
        let prepared = self.prepared.clone().ok_or(CodecError::Level(level))?;
        chunk.profile = prepared.id;
        let layer_begin = usize::from(range.layers.start);
        if level == LEVEL_LOSSLESS {
            let lossless = prepared.lossless(self.isa, shape, layer_begin);
            lossless.encode(packed, &mut self.scratch, out)?;
            return seal(out, at, &chunk);
        }
        if range.token_begin == 0 {
            let first = first_token_of(&shape, packed);
            chunk.first_token = FirstToken::Profile;
            if !self.is_first_token(&shape, range, &first)? {
                chunk.first_token = FirstToken::Stored;
                out.extend_from_slice(&first);
            }
        }
        let lossy = prepared.lossy(level, self.isa, &self.shape.inverse_frequencies)?;
        let group = layer_begin / prepared.profile.layers_each(lossy.level.rotated);
        let begin = range.token_begin as usize;
        lossy.encode(
            &shape,
            begin,
            group,
            packed,
            (&mut self.scratch, &mut self.columns),
            out,
        )?;
        seal(out, at, &chunk)
    }

    /// Replaces `packed` by the KV of a chunk. Never panics, whatever the chunk holds, and takes no more memory than its range.
    ///
    /// # Errors
    /// [`CodecError`]; `packed` is then unspecified.
    pub fn decode(&mut self, chunk: &Chunk<'_>, packed: &mut Vec<u8>) -> Result<(), CodecError> {
        self.check_fingerprint(chunk)?;
        let shape = self.check(chunk.level, &chunk.range)?;
        let mut reader = Reader(chunk.payload);
        if chunk.level == LEVEL_RAW {
            packed.clear();
            packed.extend_from_slice(reader.take(shape.byte_len(), "raw KV")?);
            return reader.end();
        }
        let prepared = self.profile_of(chunk)?;
        packed.resize(shape.byte_len(), 0);
        let layer_begin = usize::from(chunk.range.layers.start);
        if chunk.level == LEVEL_LOSSLESS {
            let lossless = prepared.lossless(self.isa, shape, layer_begin);
            lossless.decode(&mut reader, &mut self.scratch, packed)?;
            return reader.end();
        }
        let first = self.first_elements(chunk, &shape, &mut reader)?;
        let lossy = prepared.lossy(chunk.level, self.isa, &self.shape.inverse_frequencies)?;
        let group = layer_begin / prepared.profile.layers_each(lossy.level.rotated);
        let begin = chunk.range.token_begin as usize;
        lossy.decode(
            &shape,
            begin,
            group,
            &mut reader,
            (&mut self.scratch, &mut self.columns),
            packed,
        )?;
        if let Some(first) = first {
            let run = shape.head_size * shape.dtype.byte_size();
            for (to, from) in packed.chunks_exact_mut(run * shape.tokens).zip(first.chunks_exact(run)) {
                to[..run].copy_from_slice(from);
            }
        }
        reader.end()
    }

    fn check_fingerprint(&self, chunk: &Chunk<'_>) -> Result<(), CodecError> {
        if chunk.fingerprint == self.shape.fingerprint {
            Ok(())
        } else {
            Err(CodecError::Layout("the fingerprint"))
        }
    }

    /// The profile that a chunk was encoded with, when it is ours.
    pub(crate) fn profile_of(&self, chunk: &Chunk<'_>) -> Result<Arc<Prepared>, CodecError> {
        self.check_fingerprint(chunk)?;
        let none = || other_profile(chunk.profile, "none".into());
        let prepared = self.prepared.clone().ok_or_else(none)?;
        if chunk.profile == prepared.id {
            Ok(prepared)
        } else {
            Err(other_profile(chunk.profile, prepared.id.to_string()))
        }
    }

    /// What a lossy chunk says of position 0: elements, one token of each head.
    pub(crate) fn first_elements(
        &self,
        chunk: &Chunk<'_>,
        shape: &PackedShape,
        reader: &mut Reader<'_>,
    ) -> Result<Option<Vec<u8>>, CodecError> {
        let shape = PackedShape { tokens: 1, ..*shape };
        Ok(match chunk.first_token {
            FirstToken::Absent => None,
            FirstToken::Stored => Some(reader.take(shape.byte_len(), "first token")?.to_vec()),
            FirstToken::Profile => {
                let prepared = self.profile_of(chunk)?;
                let (mut bytes, mut turns) = (vec![0; shape.byte_len()], KeyTurns::default());
                turns.fill(&[], 0, 1);
                let first = columns_of_one(prepared.first_token(&chunk.range));
                packed_from_columns(self.isa, &shape, &turns, &first, &mut bytes)?;
                Some(bytes)
            }
        })
    }

    /// Whether the elements of position 0 may be taken for the profile's.
    pub(crate) fn is_first_token(
        &self,
        shape: &PackedShape,
        range: &ChunkRange,
        first: &[u8],
    ) -> Result<bool, CodecError> {
        let prepared = self.prepared.as_ref().ok_or(CodecError::Level(LEVEL_LOSSY_FROM))?;
        let shape = PackedShape { tokens: 1, ..*shape };
        is_near(self.isa, &shape, first, prepared.first_token(range))
    }

    /// The shape of a range that the model has and the level can code.
    pub(crate) fn check(&self, level: u8, range: &ChunkRange) -> Result<PackedShape, CodecError> {
        let each = self.layers_each(level)?;
        let (begin, end) = (usize::from(range.layers.start), usize::from(range.layers.end));
        let whole = begin.is_multiple_of(each) && (end.is_multiple_of(each) || end == self.shape.layer_count);
        if begin >= end || end > self.shape.layer_count || !whole {
            return Err(CodecError::Layers {
                begin,
                end,
                level,
                group: each,
            });
        }
        let tokens = range.token_count as usize;
        if tokens == 0 || tokens > TOKENS_MAX {
            return Err(CodecError::Field {
                what: "token count",
                value: tokens as u64,
                limit: TOKENS_MAX as u64,
            });
        }
        let KvShapeOfModel {
            dtype,
            kv_head_count,
            head_size,
            ..
        } = self.shape;
        if level == LEVEL_LOSSLESS
            && self
                .prepared
                .as_ref()
                .is_some_and(|one| one.profile.exponents.dtype != dtype)
        {
            return Err(CodecError::Layout("the element type"));
        }
        Ok(PackedShape {
            dtype,
            layers: end - begin,
            kv_heads: kv_head_count,
            head_size,
            tokens,
        })
    }
}

impl Prepared {
    pub(crate) fn level(&self, level: u8) -> Result<&Level, CodecError> {
        let index = level.checked_sub(LEVEL_LOSSY_FROM).map(usize::from);
        index
            .and_then(|index| self.profile.levels.get(index))
            .ok_or(CodecError::Level(level))
    }

    fn lossless(&self, isa: Isa, shape: PackedShape, layer_begin: usize) -> Lossless<'_> {
        Lossless {
            isa,
            tables: &self.profile.exponents,
            counts: &self.exponent_counts,
            shape,
            layer_begin,
        }
    }

    fn lossy<'a>(&'a self, level: u8, isa: Isa, inverse_frequencies: &'a [f32]) -> Result<Lossy<'a>, CodecError> {
        let own = self.level(level)?;
        let matrices = &self.matrices[usize::from(level - LEVEL_LOSSY_FROM)];
        Ok(Lossy {
            isa,
            profile: &self.profile,
            level: own,
            matrices,
            inverse_frequencies,
        })
    }

    fn first_token(&self, range: &ChunkRange) -> &[f32] {
        let width = self.profile.width();
        &self.profile.first_token[usize::from(range.layers.start) * width..usize::from(range.layers.end) * width]
    }
}

fn other_profile(needed: ProfileId, own: String) -> CodecError {
    CodecError::Profile {
        needed: needed.to_string(),
        own,
    }
}

/// The first token of every head.
fn first_token_of(shape: &PackedShape, packed: &[u8]) -> Vec<u8> {
    let run = shape.head_size * shape.dtype.byte_size();
    packed
        .chunks_exact(run * shape.tokens)
        .flat_map(|head| &head[..run])
        .copied()
        .collect()
}

/// Columns of one token.
fn columns_of_one(values: &[f32]) -> Vec<f32> {
    let stride = column_stride(1);
    let mut columns = vec![0.0; values.len() * stride];
    for (column, value) in columns.chunks_exact_mut(stride).zip(values) {
        column[0] = *value;
    }
    columns
}

/// Whether a token at position 0 is the profile's, in each layer's K and V.
fn is_near(isa: Isa, shape: &PackedShape, packed: &[u8], expected: &[f32]) -> Result<bool, CodecError> {
    let (mut columns, mut turns) = (columns_of_one(expected), KeyTurns::default());
    turns.fill(&[], 0, 1);
    columns_from_packed(isa, shape, &turns, packed, &mut columns)?;
    let own: Vec<f32> = columns.chunks_exact(shape.stride()).map(|column| column[0]).collect();
    let part = shape.kv_heads * shape.head_size;
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    Ok(own
        .chunks_exact(part)
        .zip(expected.chunks_exact(part))
        .all(|(own, expected)| {
            let distance = squares(&mut own.iter().zip(expected).map(|(x, y)| x - y));
            distance <= FIRST_TOKEN_TOLERANCE * FIRST_TOKEN_TOLERANCE * squares(&mut expected.iter().copied())
        }))
}
