//! Axes and tables of one group of layers.

use super::tables::{AxisCode, code_group};
use super::{LevelOptions, Sample, TrainOptions, columns_of, cpu, width_of};
use crate::codec::KvShapeOfModel;
use crate::eigen::eigen;
use crate::error::CodecError;
use crate::profile::{CodeGroup, RotationGroup};
use half::bf16;
use kvasir_kernels::{Activations, Cpu, PackedMatrix, Product, WeightType, column_stride, linear};
use std::ops::Range;

/// Tokens that are multiplied at once.
const BATCH_TOKENS: usize = 1024;
/// An axis is sent when more than this share of its symbols is not zero.
const ACTIVE_SHARE: f32 = 3e-4;
/// Axes of a dense level come in multiples of this: groups of the 8-bit matrices.
const AXES_STEP: usize = 4;

/// What a group of layers gets.
pub(super) struct Group {
    pub(super) rotation: RotationGroup,
    /// Of each level, of each group of that level within these layers.
    pub(super) levels: Vec<Vec<CodeGroup>>,
}

/// See the module. The first token of a text is not looked at: it is coded apart.
pub(super) fn group_of(
    shape: &KvShapeOfModel,
    samples: &[Sample],
    layers: Range<usize>,
    options: &TrainOptions,
) -> Result<Group, CodecError> {
    let cpu = cpu()?;
    let channels = layers.len() * width_of(shape);
    let count: usize = samples.iter().map(|sample| sample.tokens - 1).sum();
    let mut columns = vec![0.0; channels * count];
    let mut begin = 0;
    for sample in samples {
        let own = columns_of(shape, sample, layers.clone())?;
        for (to, from) in columns
            .chunks_exact_mut(count)
            .zip(own.chunks_exact(column_stride(sample.tokens)))
        {
            to[begin..begin + sample.tokens - 1].copy_from_slice(&from[1..sample.tokens]);
        }
        begin += sample.tokens - 1;
    }
    let mut mean = Vec::with_capacity(channels);
    for column in columns.chunks_exact_mut(count) {
        let sum: f64 = column.iter().map(|x| f64::from(*x)).sum();
        let own = (sum / count as f64) as f32;
        column.iter_mut().for_each(|x| *x -= own);
        mean.push(own);
    }
    let mut levels: Vec<Vec<CodeGroup>> = Vec::new();
    for level in &options.levels {
        let fast = if level.rotated {
            Vec::new()
        } else {
            fast_groups(&columns, &mean, count, layers.len(), level)?
        };
        levels.push(fast);
    }
    let scale = scales(&columns, count, &layers, options);
    columns
        .chunks_exact_mut(count)
        .zip(&scale)
        .for_each(|(column, scale)| column.iter_mut().for_each(|x| *x *= scale));
    let covariance = products(&cpu, &columns, count, channels)?;
    let (_, basis) = eigen(channels, covariance);
    let basis: Vec<u16> = basis.iter().map(|value| bf16::from_f32(*value).to_bits()).collect();
    let rotation = RotationGroup { mean, scale, basis };
    if options.levels.iter().any(|level| level.rotated) {
        let along = rotated(&cpu, &rotation.basis, &columns, count, channels)?;
        drop(columns);
        for (level, groups) in options
            .levels
            .iter()
            .zip(&mut levels)
            .filter(|(level, _)| level.rotated)
        {
            *groups = vec![dense_group(&along, count, level)?];
        }
    }
    Ok(Group { rotation, levels })
}

/// Each layer by itself, channels as they are; a step is a share of the channel's deviation.
fn fast_groups(
    columns: &[f32],
    mean: &[f32],
    count: usize,
    layers: usize,
    level: &LevelOptions,
) -> Result<Vec<CodeGroup>, CodecError> {
    let width = mean.len() / layers;
    let of_layer = |layer: usize| {
        let codes = (layer * width..(layer + 1) * width).map(|channel| {
            let column = &columns[channel * count..(channel + 1) * count];
            let deviation = (squares(column) / count as f64).sqrt() as f32;
            AxisCode::fit(
                column,
                mean[channel],
                (level.step * deviation).max(f32::MIN_POSITIVE * 1e6),
                level.bit_price,
            )
        });
        code_group(codes.collect())
    };
    (0..layers).map(of_layer).collect()
}

/// One step for all axes, of which those are kept that ever carry anything.
fn dense_group(along: &[f32], count: usize, level: &LevelOptions) -> Result<CodeGroup, CodecError> {
    let mut codes: Vec<AxisCode> = along
        .chunks_exact(count)
        .map(|column| AxisCode::fit(column, 0.0, level.step, level.bit_price))
        .collect();
    let active = codes
        .iter()
        .rposition(|code| code.active_share > ACTIVE_SHARE)
        .map_or(1, |last| last + 1);
    codes.truncate(active.next_multiple_of(AXES_STEP));
    code_group(codes)
}

/// The weight of each channel: that of its layer's K or V over their root mean square.
fn scales(columns: &[f32], count: usize, layers: &Range<usize>, options: &TrainOptions) -> Vec<f32> {
    let part = columns.len() / count / layers.len() / 2;
    let parts = columns.chunks_exact(part * count).enumerate();
    parts
        .flat_map(|(index, columns)| {
            let size = (squares(columns) / columns.len() as f64).sqrt().max(1e-12) as f32;
            let weight = options.weights[layers.start + index / 2][index % 2];
            std::iter::repeat_n(weight / size, part)
        })
        .collect()
}

fn squares(values: &[f32]) -> f64 {
    values
        .chunks(1 << 12)
        .map(|values| f64::from(values.iter().map(|x| x * x).sum::<f32>()))
        .sum()
}

/// Mean products of every pair of channels, `[channels][channels]`.
fn products(cpu: &Cpu, columns: &[f32], count: usize, channels: usize) -> Result<Vec<f64>, CodecError> {
    let mut sums = vec![0.0_f64; channels * channels];
    let (mut x, mut out) = (Activations::default(), vec![0.0; channels * channels]);
    for begin in (0..count).step_by(BATCH_TOKENS) {
        let end = (begin + BATCH_TOKENS).min(count);
        let part: Vec<f32> = columns
            .chunks_exact(count)
            .flat_map(|column| &column[begin..end])
            .copied()
            .collect();
        let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
        let weights = PackedMatrix::pack(WeightType::F32, channels, end - begin, &bytes)?;
        x.prepare(cpu, &part, channels, &[&weights])?;
        linear(
            cpu,
            &x,
            &mut [Product {
                weights: &weights,
                out: &mut out,
                accumulate: false,
            }],
        )?;
        sums.iter_mut()
            .zip(&out)
            .for_each(|(sum, product)| *sum += f64::from(*product));
    }
    sums.iter_mut().for_each(|sum| *sum /= count as f64);
    Ok(sums)
}

/// The tokens along the axes, `[axes][tokens]`.
fn rotated(cpu: &Cpu, basis: &[u16], columns: &[f32], count: usize, channels: usize) -> Result<Vec<f32>, CodecError> {
    let basis: Vec<f32> = basis.iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect();
    let mut along = vec![0.0; columns.len()];
    let mut x = Activations::default();
    for begin in (0..count).step_by(BATCH_TOKENS) {
        let tokens = (begin + BATCH_TOKENS).min(count) - begin;
        // Tokens are the weights' rows here, so that the axes come out as rows.
        let part = (begin..begin + tokens)
            .flat_map(|token| (0..channels).map(move |channel| columns[channel * count + token]));
        let bytes: Vec<u8> = part.flat_map(f32::to_le_bytes).collect();
        let weights = PackedMatrix::pack(WeightType::F32, tokens, channels, &bytes)?;
        let mut out = vec![0.0; channels * tokens];
        x.prepare(cpu, &basis, channels, &[&weights])?;
        linear(
            cpu,
            &x,
            &mut [Product {
                weights: &weights,
                out: &mut out,
                accumulate: false,
            }],
        )?;
        for (axis, row) in out.chunks_exact(tokens).enumerate() {
            along[axis * count + begin..][..tokens].copy_from_slice(row);
        }
    }
    Ok(along)
}
