//! Codecs of others, to compare with: as they are described, in bytes that a decoder could read.

use kvasir_codec::CodecError;
use kvasir_codec::KvShapeOfModel;
use kvasir_codec::train::Sample;
use kvasir_kernels::{Isa, KeyTurns, PackedShape, columns_from_packed, packed_from_columns};

use super::range_coder::{CUMULATIVE_TOTAL, RangeEncoder};

/// Tokens from one anchor to the next.
const GROUP: usize = 10;
/// Largest delta symbol on either side.
const REACH: i32 = 60;
/// Symbols of an anchor: 8 bits.
const ANCHOR_REACH: i32 = 127;

/// Uniform quantisation with one f16 scale for each (layer, K or V, token): LMCache's naive serialisation, at any width.
pub fn uniform(shape: &KvShapeOfModel, text: &Sample, bits: u32) -> Result<(usize, Sample), CodecError> {
    let rows = rows_of(shape, text, &[])?;
    let part = shape.kv_head_count * shape.head_size;
    let largest_symbol = ((1 << (bits - 1)) - 1) as f32;
    let mut decoded = Vec::with_capacity(rows.len());
    for values in rows.chunks_exact(part) {
        let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let scale = half_up(largest / largest_symbol);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        decoded.extend(
            values
                .iter()
                .map(|x| (x * inverse).round().clamp(-largest_symbol, largest_symbol) * scale),
        );
    }
    let bytes = (rows.len() * bits as usize).div_ceil(8) + 2 * rows.len() / part;
    Ok((bytes, packed_of(shape, text.tokens, &[], &decoded)?))
}

/// An f16 not below `value`.
fn half_up(value: f32) -> f32 {
    let rounded = half::f16::from_f32(value);
    if rounded.to_f32() >= value {
        rounded.to_f32()
    } else {
        half::f16::from_bits(rounded.to_bits() + 1).to_f32()
    }
}

/// CacheGen's codec (Liu et al., SIGCOMM 2024, section 5.2): groups of ten tokens, the first an anchor in 8 bits, the others as differences to
/// it; bins of differences 0.5, 1 and 1.5 wide over the layers' thirds; arithmetic coding with one table for each (layer, K or V, channel),
/// anchors and differences apart, made offline. Keys before rotation. A bin is counted in deviations of its channel's differences.
pub struct AnchorDelta {
    shape: KvShapeOfModel,
    /// Deviation of differences, largest absolute value; `[channels]`.
    deviations: Vec<f32>,
    largest: Vec<f32>,
    /// Of each factor, of each channel: borders of anchors' and of differences' symbols.
    tables: Vec<Vec<[Vec<u32>; 2]>>,
}

impl AnchorDelta {
    /// What the bins are multiplied with: finer to coarser levels.
    pub const FACTORS: [f32; 5] = [0.15, 0.25, 0.35, 0.5, 0.75];

    /// Measures channels on texts that are not the ones coded.
    pub fn fit(shape: &KvShapeOfModel, texts: &[Sample]) -> Result<Self, CodecError> {
        let rows = texts
            .iter()
            .map(|text| rows_of(shape, text, &shape.inverse_frequencies));
        let fit_on = rows.collect::<Result<Vec<_>, _>>()?;
        let channels = channels_of(shape);
        let (mut sums, mut count, mut largest) = (vec![0.0_f64; channels], 0, vec![1e-9_f32; channels]);
        for rows in &fit_on {
            for group in rows.chunks(GROUP * channels) {
                for row in group.chunks_exact(channels) {
                    largest
                        .iter_mut()
                        .zip(row)
                        .for_each(|(largest, x)| *largest = largest.max(x.abs()));
                }
                for row in group.chunks_exact(channels).skip(1) {
                    let deltas = row
                        .iter()
                        .zip(&group[..channels])
                        .map(|(x, anchor)| f64::from(x - anchor));
                    sums.iter_mut()
                        .zip(deltas)
                        .for_each(|(sum, delta)| *sum += delta * delta);
                    count += 1;
                }
            }
        }
        let deviations = sums
            .iter()
            .map(|sum| ((sum / f64::from(count.max(1))).sqrt() as f32).max(1e-9))
            .collect();
        let mut own = Self {
            shape: shape.clone(),
            deviations,
            largest,
            tables: Vec::new(),
        };
        let columns: Vec<Vec<f32>> = fit_on.iter().map(|rows| transposed(rows, channels)).collect();
        let of_factor = |factor: f32| {
            (0..channels)
                .map(|channel| own.tables_of(&columns, channel, factor))
                .collect()
        };
        own.tables = Self::FACTORS.map(of_factor).into();
        Ok(own)
    }

    fn tables_of(&self, columns: &[Vec<f32>], channel: usize, factor: f32) -> [Vec<u32>; 2] {
        let mut counts = [
            vec![0.5; 2 * ANCHOR_REACH as usize + 1],
            vec![0.05; 2 * REACH as usize + 1],
        ];
        for text in columns {
            let tokens = text.len() / channels_of(&self.shape);
            let column = &text[channel * tokens..(channel + 1) * tokens];
            self.symbols(column, channel, factor, |is_anchor, symbol, _, _| {
                counts[usize::from(!is_anchor)][symbol] += 1.0
            });
        }
        counts.map(|counts| cumulative(&counts))
    }

    /// Codes a text with bins of a level's width.
    pub fn code(&self, text: &Sample, factor_index: usize) -> Result<(usize, Sample), CodecError> {
        let rows = rows_of(&self.shape, text, &self.shape.inverse_frequencies)?;
        let channels = channels_of(&self.shape);
        let columns = transposed(&rows, channels);
        let mut decoded = rows;
        let mut bytes = 0;
        for (channel, column) in columns.chunks_exact(text.tokens).enumerate() {
            let tables = &self.tables[factor_index][channel];
            let mut encoder = RangeEncoder::default();
            self.symbols(
                column,
                channel,
                Self::FACTORS[factor_index],
                |is_anchor, symbol, token, value| {
                    let table = &tables[usize::from(!is_anchor)];
                    encoder.encode(table[symbol], table[symbol + 1]);
                    decoded[token * channels + channel] = value;
                },
            );
            // Streams are located by their lengths, two bytes each.
            bytes += encoder.finish().len() + 2;
        }
        let text = packed_of(&self.shape, text.tokens, &self.shape.inverse_frequencies, &decoded)?;
        Ok((bytes, text))
    }

    fn bin(&self, channel: usize) -> f32 {
        let layer = channel / (channels_of(&self.shape) / self.shape.layer_count);
        let third = layer * 3 / self.shape.layer_count;
        self.deviations[channel] * [0.5, 1.0, 1.5][third]
    }

    /// Each token's symbol of a channel, and what it stands for.
    fn symbols(&self, column: &[f32], channel: usize, factor: f32, mut each: impl FnMut(bool, usize, usize, f32)) {
        let bin = self.bin(channel) * factor;
        let anchor_bin = self.largest[channel] / ANCHOR_REACH as f32;
        let mut anchor = 0.0;
        for (token, x) in column.iter().enumerate() {
            let is_anchor = token.is_multiple_of(GROUP);
            let (from, bin, reach) = if is_anchor {
                (0.0, anchor_bin, ANCHOR_REACH)
            } else {
                (anchor, bin, REACH)
            };
            let steps = (((x - from) / bin).round() as i32).clamp(-reach, reach);
            let value = from + steps as f32 * bin;
            if is_anchor {
                anchor = value;
            }
            each(is_anchor, (steps + reach) as usize, token, value);
        }
    }
}

/// Borders of symbols on the coder's scale, each at least one apart.
fn cumulative(counts: &[f64]) -> Vec<u32> {
    let total: f64 = counts.iter().sum();
    let spare = f64::from(CUMULATIVE_TOTAL) - counts.len() as f64;
    let mut sum = 0.0;
    let mut borders = vec![0];
    for (index, count) in counts.iter().enumerate() {
        sum += count;
        borders.push((sum / total * spare) as u32 + index as u32 + 1);
    }
    if let Some(last) = borders.last_mut() {
        *last = CUMULATIVE_TOTAL;
    }
    borders
}

/// `[channels][tokens]`.
fn transposed(rows: &[f32], channels: usize) -> Vec<f32> {
    let tokens = rows.len() / channels;
    (0..channels)
        .flat_map(|channel| (0..tokens).map(move |token| rows[token * channels + channel]))
        .collect()
}

fn channels_of(shape: &KvShapeOfModel) -> usize {
    2 * shape.layer_count * shape.kv_head_count * shape.head_size
}

fn packed_shape(shape: &KvShapeOfModel, tokens: usize) -> PackedShape {
    PackedShape {
        dtype: shape.dtype,
        layers: shape.layer_count,
        kv_heads: shape.kv_head_count,
        head_size: shape.head_size,
        tokens,
    }
}

/// `[tokens][channels]`, keys turned back by the frequencies given.
fn rows_of(shape: &KvShapeOfModel, text: &Sample, inverse_frequencies: &[f32]) -> Result<Vec<f32>, CodecError> {
    let (packed_shape, mut turns) = (packed_shape(shape, text.tokens), KeyTurns::default());
    turns.fill(inverse_frequencies, 0, text.tokens);
    let (width, stride) = (packed_shape.width(), packed_shape.stride());
    let (mut columns, mut rows) = (vec![0.0; width * stride], vec![0.0; width * text.tokens]);
    columns_from_packed(Isa::detect(), &packed_shape, &turns, &text.packed, &mut columns)?;
    for (channel, column) in columns.chunks_exact(stride).enumerate() {
        for (row, value) in rows.chunks_exact_mut(width).zip(column) {
            row[channel] = *value;
        }
    }
    Ok(rows)
}

fn packed_of(
    shape: &KvShapeOfModel,
    tokens: usize,
    inverse_frequencies: &[f32],
    rows: &[f32],
) -> Result<Sample, CodecError> {
    let (packed_shape, mut turns) = (packed_shape(shape, tokens), KeyTurns::default());
    turns.fill(inverse_frequencies, 0, tokens);
    let (width, stride) = (packed_shape.width(), packed_shape.stride());
    let (mut columns, mut packed) = (vec![0.0; width * stride], vec![0; packed_shape.byte_len()]);
    for (token, row) in rows.chunks_exact(width).enumerate() {
        for (column, value) in columns.chunks_exact_mut(stride).zip(row) {
            column[token] = *value;
        }
    }
    packed_from_columns(Isa::detect(), &packed_shape, &turns, &columns, &mut packed)?;
    Ok(Sample { tokens, packed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_kernels::KvDtype;

    fn shape() -> KvShapeOfModel {
        KvShapeOfModel {
            dtype: KvDtype::F32,
            layer_count: 3,
            kv_head_count: 1,
            head_size: 4,
            inverse_frequencies: vec![0.5, 0.01],
            fingerprint: [0; 16],
        }
    }

    fn text(seed: usize) -> Sample {
        let rows: Vec<f32> = (0..50 * 24)
            .map(|i| ((i * (i + seed) % 97) as f32 / 97.0 - 0.5) * (1 + i % 4) as f32)
            .collect();
        packed_of(&shape(), 50, &shape().inverse_frequencies, &rows).expect("a text")
    }

    fn errors(a: &Sample, b: &Sample, inverse_frequencies: &[f32]) -> Vec<f32> {
        let rows = |text: &Sample| rows_of(&shape(), text, inverse_frequencies).expect("rows");
        rows(a).iter().zip(rows(b)).map(|(x, y)| (x - y).abs()).collect()
    }

    #[test]
    fn uniform_codes_err_by_half_a_step_and_take_the_bits_they_say() {
        for (bits, steps) in [(8, 127.0), (4, 7.0)] {
            let (bytes, decoded) = uniform(&shape(), &text(3), bits).expect("a code");
            assert_eq!(bytes, 50 * 24 * bits as usize / 8 + 50 * 6 * 2);
            let largest = errors(&text(3), &decoded, &[]).into_iter().fold(0.0, f32::max);
            assert!(largest > 0.0 && largest <= 0.51 * 2.9 / steps, "{largest}");
        }
    }

    #[test]
    fn anchors_and_differences_err_by_half_a_bin_and_fewer_bytes_err_more() {
        let codec = AnchorDelta::fit(&shape(), &[text(1), text(2)]).expect("tables");
        let mut before = usize::MAX;
        for (index, factor) in AnchorDelta::FACTORS.iter().enumerate() {
            let (bytes, decoded) = codec.code(&text(3), index).expect("a code");
            assert!(bytes < before, "{bytes} bytes at {factor}");
            before = bytes;
            for (at, error) in errors(&text(3), &decoded, &shape().inverse_frequencies)
                .iter()
                .enumerate()
            {
                let channel = at % 24;
                let bin = (codec.bin(channel) * factor).max(codec.largest[channel] / ANCHOR_REACH as f32);
                assert!(*error <= 0.51 * bin + 1e-5, "channel {channel}: {error} of {bin}");
            }
        }
    }
}
