//! The lossy levels: keys turned back to position 0, channels rotated onto their group's axes (dense levels) or left as they are (fast ones),
//! quantised with one step for all axes, coded by each axis's own table.
//!
//! Static tables per channel and keys before rotary embedding after Liu et al., "CacheGen", SIGCOMM 2024, section 5; instead of its deltas to
//! anchor tokens, which cost more than they save once a table knows a channel's mean and spread, the channels of neighbouring layers are
//! decorrelated by their principal axes (Karhunen-Loève transform).

use crate::bytes::Reader;
use crate::error::CodecError;
use crate::matrices::Matrices;
use crate::profile::{CodeGroup, Level, Profile};
use crate::section::{Coding, Scratch};
use kvasir_kernels::{
    AlignedF32, Columns8, Isa, KeyTurns, PackedShape, columns_from_packed, multiply8, packed_from_columns,
    symbols_from_columns, symbols_to_columns,
};

/// Buffers between calls.
#[derive(Default)]
pub(crate) struct Columns {
    /// Channels, `[channels][stride]`.
    channels: AlignedF32,
    /// Along the axes, `[axes][stride]`.
    along: AlignedF32,
    rounded: Columns8,
    /// Of the tokens of the last chunk: layers of the same tokens follow each other.
    turns: KeyTurns,
}

/// What coding a chunk needs to know.
pub(crate) struct Lossy<'a> {
    pub(crate) isa: Isa,
    pub(crate) profile: &'a Profile,
    pub(crate) level: &'a Level,
    /// One of each group; empty for levels without rotation.
    pub(crate) matrices: &'a [Matrices],
    pub(crate) inverse_frequencies: &'a [f32],
}

impl Lossy<'_> {
    /// Appends the sections of the groups from `group_begin` on that `packed` holds. The token at position 0 is coded as nothing: it travels apart.
    pub(crate) fn encode(
        &self,
        shape: &PackedShape,
        token_begin: usize,
        group_begin: usize,
        packed: &[u8],
        (scratch, columns): (&mut Scratch, &mut Columns),
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let stride = shape.stride();
        columns.turn(self.inverse_frequencies, token_begin, shape.tokens);
        for (index, shape, bytes) in self.groups(shape, group_begin) {
            let (group, coding) = self.coding(index, shape.tokens);
            let Columns { channels, turns, .. } = &mut *columns;
            channels.resize(shape.width() * stride);
            if !columns_from_packed(self.isa, &shape, turns, &packed[bytes], channels)? {
                return Err(CodecError::NotFinite);
            }
            if token_begin == 0 {
                let column = channels.chunks_exact_mut(stride);
                match self.matrices.get(index) {
                    Some(matrices) => column.zip(&matrices.mean).for_each(|(column, mean)| column[0] = *mean),
                    None => column.zip(&group.axes).for_each(|(column, axis)| column[0] = axis.base),
                }
            }
            let along = match self.matrices.get(index) {
                Some(matrices) => self.turn(matrices, shape.tokens, columns)?,
                None => &columns.channels,
            };
            scratch.resize(coding, group.shifts());
            scratch.beyond.clear();
            let planes = (&mut scratch.high[..], &mut scratch.low[..]);
            symbols_from_columns(self.isa, &group.axes, shape.tokens, along, planes, &mut scratch.beyond)?;
            scratch.write(coding, group.shifts(), out)?;
        }
        Ok(())
    }

    /// Fills `packed` from sections.
    pub(crate) fn decode(
        &self,
        shape: &PackedShape,
        token_begin: usize,
        group_begin: usize,
        reader: &mut Reader<'_>,
        (scratch, columns): (&mut Scratch, &mut Columns),
        packed: &mut [u8],
    ) -> Result<(), CodecError> {
        let stride = shape.stride();
        columns.turn(self.inverse_frequencies, token_begin, shape.tokens);
        for (index, shape, bytes) in self.groups(shape, group_begin) {
            let (group, coding) = self.coding(index, shape.tokens);
            let axes = &group.axes;
            scratch.read(coding, group.shifts(), reader)?;
            let along = match self.matrices.get(index) {
                Some(_) => &mut columns.along,
                None => &mut columns.channels,
            };
            along.resize(axes.len() * stride);
            symbols_to_columns(self.isa, axes, shape.tokens, (&scratch.high, &scratch.low), along)?;
            for one in &scratch.beyond {
                let axis = one.axis as usize;
                along[axis * stride + one.token as usize] = axes[axis].value(one.steps);
            }
            if let Some(matrices) = self.matrices.get(index) {
                self.turn_back(matrices, shape.tokens, columns)?;
            }
            packed_from_columns(self.isa, &shape, &columns.turns, &columns.channels, &mut packed[bytes])?;
        }
        Ok(())
    }

    /// From channels to numbers along the axes.
    fn turn<'a>(
        &self,
        matrices: &Matrices,
        tokens: usize,
        columns: &'a mut Columns,
    ) -> Result<&'a AlignedF32, CodecError> {
        let Columns {
            channels,
            along,
            rounded,
            ..
        } = columns;
        let (matrix, stride) = (&matrices.forward, channels.len() / matrices.mean.len());
        rounded.begin(matrix.blocks(), tokens);
        for (index, range) in matrix.blocks().ranges().enumerate() {
            let part = &channels[range.start * stride..range.end * stride];
            let (centres, factors) = (&matrices.mean[range.clone()], &matrices.factors[range]);
            rounded.fill(self.isa, index, part, centres, factors)?;
        }
        along.resize(matrix.rows() * stride);
        multiply8(self.isa, matrix, rounded, &matrices.nothing, along)?;
        Ok(along)
    }

    /// From numbers along the axes to channels.
    fn turn_back(&self, matrices: &Matrices, tokens: usize, columns: &mut Columns) -> Result<(), CodecError> {
        let Columns {
            channels,
            along,
            rounded,
            ..
        } = columns;
        let (matrix, stride) = (&matrices.back, along.len() / matrices.nothing.len());
        rounded.begin(matrix.blocks(), tokens);
        for (index, range) in matrix.blocks().ranges().enumerate() {
            let part = &along[range.start * stride..range.end * stride];
            let (centres, factors) = (&matrices.nothing[range.clone()], &matrices.ones[range]);
            rounded.fill(self.isa, index, part, centres, factors)?;
        }
        channels.resize(matrix.rows() * stride);
        Ok(multiply8(self.isa, matrix, rounded, &matrices.mean, channels)?)
    }

    fn coding(&self, index: usize, tokens: usize) -> (&CodeGroup, Coding<'_>) {
        let group = &self.level.groups[index];
        let coding = Coding {
            isa: self.isa,
            tables: &group.tables,
            tokens,
        };
        (group, coding)
    }

    /// Groups of a packed range: index, shape, and where its bytes lie.
    fn groups(
        &self,
        shape: &PackedShape,
        group_begin: usize,
    ) -> impl Iterator<Item = (usize, PackedShape, std::ops::Range<usize>)> {
        let (shape, profile, rotated) = (*shape, self.profile, self.level.rotated);
        let mut layer = 0;
        (group_begin..profile.group_count(rotated)).map_while(move |index| {
            let layers = profile.group_layers(rotated, index).len();
            let begin = layer;
            layer += layers;
            let of = |layers: usize| PackedShape { layers, ..shape }.byte_len();
            (layer <= shape.layers).then(|| (index, PackedShape { layers, ..shape }, of(begin)..of(layer)))
        })
    }
}

impl Columns {
    fn turn(&mut self, inverse_frequencies: &[f32], begin: usize, tokens: usize) {
        if !self.turns.is_of(inverse_frequencies.len(), begin, tokens) {
            self.turns.fill(inverse_frequencies, begin, tokens);
        }
    }
}
