//! The lossy levels: keys turned back to position 0, channels rotated onto their group's axes (dense levels) or left as they are (fast ones),
//! quantised with one step for all axes, coded by each axis's own table.
//!
//! Static tables per channel and keys before rotary embedding after Liu et al., "CacheGen", SIGCOMM 2024, section 5; instead of its deltas to
//! anchor tokens, which cost more than they save once a table knows a channel's mean and spread, the channels of neighbouring layers are
//! decorrelated by their principal axes (Karhunen-Loève transform).

use crate::bytes::Reader;
use crate::error::CodecError;
use crate::profile::{Level, Profile};
use crate::section::Scratch;
use half::bf16;
use kvasir_kernels::{
    Activations, Cpu, KeyTurns, PackedMatrix, PackedShape, Product, WeightType, linear, packed_from_rows,
    rows_from_packed, symbols_from_rows, symbols_to_rows,
};

/// Axes of most variance, whose numbers are too large beside their neighbours' to share an 8-bit scale with them: multiplied in bf16.
const WIDE_AXES: usize = 64;

/// A group's rotation as matrices.
pub(crate) struct Matrices {
    /// `[axes, channels]`: numbers along the axes.
    forward: PackedMatrix,
    /// `[channels, axes]` of the first axes, and of the others; the second is missing when there are few.
    back: (PackedMatrix, Option<PackedMatrix>),
}

impl Matrices {
    /// Matrices of the first `axes` axes of a group.
    pub(crate) fn new(profile: &Profile, group: usize, axes: usize) -> Result<Self, CodecError> {
        let rotation = profile.rotation.as_ref().ok_or(CodecError::Layout("rotation"))?;
        let group = rotation.groups.get(group).ok_or(CodecError::Layout("rotation"))?;
        let channels = group.mean.len();
        let basis = |axis: usize, channel: usize| bf16::from_bits(group.basis[axis * channels + channel]).to_f32();
        let forward: Vec<f32> = (0..axes)
            .flat_map(|axis| (0..channels).map(move |channel| (axis, channel)))
            .map(|(axis, channel)| basis(axis, channel) * group.scale[channel])
            .collect();
        let wide = axes.min(WIDE_AXES);
        let back = |axes: std::ops::Range<usize>| -> Vec<f32> {
            let rows = (0..channels).flat_map(|channel| axes.clone().map(move |axis| (axis, channel)));
            rows.map(|(axis, channel)| basis(axis, channel) / group.scale[channel])
                .collect()
        };
        let narrow = match axes - wide {
            0 => None,
            count => Some(packed(channels, count, &back(wide..axes), true)?),
        };
        Ok(Self {
            forward: packed(axes, channels, &forward, true)?,
            back: (packed(channels, wide, &back(0..wide), false)?, narrow),
        })
    }
}

/// In 8 bits where the columns are whole blocks and it is wished, else in bf16.
fn packed(rows: usize, cols: usize, values: &[f32], eight_bits: bool) -> Result<PackedMatrix, CodecError> {
    let block = WeightType::Q8_0.block_len();
    let (weight_type, source) = if eight_bits && cols.is_multiple_of(block) {
        (
            WeightType::Q8_0,
            values.chunks_exact(block).flat_map(q8_block).collect::<Vec<u8>>(),
        )
    } else {
        let bits = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes());
        (WeightType::Bf16Pairs, bits.collect())
    };
    Ok(PackedMatrix::pack(weight_type, rows, cols, &source)?)
}

/// A scale of f16 and 32 signed bytes.
fn q8_block(values: &[f32]) -> Vec<u8> {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = half::f16::from_f32(largest / 127.0);
    let inverse = if scale.to_f32() > 0.0 {
        1.0 / scale.to_f32()
    } else {
        0.0
    };
    let mut block = scale.to_le_bytes().to_vec();
    block.extend(
        values
            .iter()
            .map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8),
    );
    block
}

/// Buffers between calls.
#[derive(Default)]
pub(crate) struct Rows {
    rows: Vec<f32>,
    along: Vec<f32>,
    turns: KeyTurns,
    part: Vec<f32>,
    x: Activations,
}

/// What coding a chunk needs to know.
pub(crate) struct Lossy<'a> {
    pub(crate) cpu: &'a Cpu,
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
        (scratch, buffers): (&mut Scratch, &mut Rows),
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let (isa, skip_first) = (self.cpu.isa, token_begin == 0);
        buffers.turns.fill(self.inverse_frequencies, token_begin, shape.tokens);
        for (index, shape, bytes) in self.groups(shape, group_begin) {
            let (group, width) = (&self.level.groups[index], shape.width());
            buffers.rows.resize(width * shape.tokens, 0.0);
            rows_from_packed(isa, &shape, &buffers.turns, &packed[bytes], &mut buffers.rows)?;
            let infinite = |value: &f32| value.to_bits() & 0x7f80_0000 == 0x7f80_0000;
            if buffers.rows.iter().fold(false, |any, value| any | infinite(value)) {
                return Err(CodecError::NotFinite);
            }
            scratch.beyond.clear();
            scratch.symbols.resize(group.tables.len() * shape.tokens, 0);
            let rows = if self.level.rotated {
                let rotation = self.rotation(index)?;
                for row in buffers.rows.chunks_exact_mut(width) {
                    row.iter_mut().zip(&rotation.mean).for_each(|(x, mean)| *x -= mean);
                }
                if skip_first {
                    buffers.rows[..width].fill(0.0);
                }
                let matrix = &self.matrices[index].forward;
                buffers.along.resize(matrix.rows() * shape.tokens, 0.0);
                buffers.x.prepare(self.cpu, &buffers.rows, shape.tokens, &[matrix])?;
                let product = Product {
                    weights: matrix,
                    out: &mut buffers.along,
                    accumulate: false,
                };
                linear(self.cpu, &buffers.x, &mut [product])?;
                &buffers.along
            } else {
                if skip_first {
                    buffers
                        .rows
                        .iter_mut()
                        .zip(&group.axes)
                        .for_each(|(x, axis)| *x = axis.base);
                }
                &buffers.rows
            };
            symbols_from_rows(
                isa,
                &group.axes,
                shape.tokens,
                rows,
                &mut scratch.symbols,
                &mut scratch.beyond,
            )?;
            scratch.write(isa, &group.tables, shape.tokens, out)?;
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
        (scratch, buffers): (&mut Scratch, &mut Rows),
        packed: &mut [u8],
    ) -> Result<(), CodecError> {
        let isa = self.cpu.isa;
        buffers.turns.fill(self.inverse_frequencies, token_begin, shape.tokens);
        for (index, shape, bytes) in self.groups(shape, group_begin) {
            let (group, width) = (&self.level.groups[index], shape.width());
            let (axes, tokens) = (&group.axes, shape.tokens);
            scratch.read(isa, &group.tables, tokens, axes.len(), reader)?;
            buffers.rows.resize(width * tokens, 0.0);
            let along = if self.level.rotated {
                &mut buffers.along
            } else {
                &mut buffers.rows
            };
            along.resize(axes.len() * tokens, 0.0);
            symbols_to_rows(isa, axes, tokens, &scratch.symbols, along)?;
            for one in &scratch.beyond {
                let axis = one.axis as usize;
                along[one.token as usize * axes.len() + axis] = axes[axis].value(one.steps);
            }
            if self.level.rotated {
                self.turn_back(index, tokens, buffers)?;
            }
            packed_from_rows(isa, &shape, &buffers.turns, &buffers.rows, &mut packed[bytes])?;
        }
        Ok(())
    }

    /// From numbers along the axes to channels.
    fn turn_back(&self, index: usize, tokens: usize, buffers: &mut Rows) -> Result<(), CodecError> {
        let (wide, narrow) = &self.matrices[index].back;
        let Rows {
            rows, along, part, x, ..
        } = buffers;
        let axes = along.len() / tokens;
        let mut begin = 0;
        for (matrix, accumulate) in std::iter::once((wide, false)).chain(narrow.iter().map(|matrix| (matrix, true))) {
            let end = begin + matrix.cols();
            part.clear();
            along
                .chunks_exact(axes)
                .for_each(|row| part.extend_from_slice(&row[begin..end]));
            x.prepare(self.cpu, part, tokens, &[matrix])?;
            linear(
                self.cpu,
                x,
                &mut [Product {
                    weights: matrix,
                    out: rows,
                    accumulate,
                }],
            )?;
            begin = end;
        }
        let rotation = self.rotation(index)?;
        for row in rows.chunks_exact_mut(rotation.mean.len()) {
            row.iter_mut().zip(&rotation.mean).for_each(|(x, mean)| *x += mean);
        }
        Ok(())
    }

    fn rotation(&self, index: usize) -> Result<&crate::profile::RotationGroup, CodecError> {
        let rotation = self.profile.rotation.as_ref().ok_or(CodecError::Layout("rotation"))?;
        Ok(&rotation.groups[index])
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
