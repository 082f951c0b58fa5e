//! Numbers of four to six bits and their scales: from a file's blocks to a panel's, and back. Nothing is rounded on the way.
//!
//! ```text
//! numbers   a block of 32 columns, 16 rows:
//!           256 bytes   [4][16 rows][4 columns], low nibble columns 4i.., high nibble columns 16 + 4i..
//!           + 64 bytes  [16 rows][4 columns], bit g the fifth bit of column 4g.. (five bits)
//!           + 128 bytes [2][16 rows][4 columns], bit pair g of half h the top bits of column 16h + 4g.. (six bits)
//! scales    q5_0        [16 rows] f16 d a block
//!           q4_k, q5_k  320 bytes for 8 blocks: [16] f16 d, [16] f16 dmin, [8][16] scales of 6 bits, [8][16] minima of 6 bits
//!           q6_k        288 bytes for 8 blocks: [16] f16 d, [16 sub-blocks of 16 columns][16] signed scales
//! ```
//!
//! The file formats are ggml's (`ggml-quants.c`).

use super::pack::WeightType;
use crate::simd::{BLOCK, LANES};
use half::f16;

/// Columns of a super-block of the K-quants.
pub(super) const SUPER_BLOCK: usize = 256;
/// Blocks of a super-block.
pub(super) const SUPER_BLOCKS: usize = SUPER_BLOCK / BLOCK;
/// Bytes of a super-block's scales in a panel: Q4_K and Q5_K.
pub(crate) const MINIMA_BYTES: usize = 320;
/// The same: Q6_K.
pub(crate) const SIGNED_BYTES: usize = 288;

/// Spreads one row of Q5_0 over its lane of a panel.
pub(super) fn pack_q5_0(lane: usize, from: &[u8], weights: &mut [u8], scales: &mut [u8]) {
    let blocks = weights.as_chunks_mut::<320>().0;
    for (index, (unit, block)) in from.as_chunks::<22>().0.iter().zip(blocks).enumerate() {
        scales[index * 32 + lane * 2..][..2].copy_from_slice(&unit[..2]);
        place_nibbles(lane, &unit[6..], block);
        let fifth = u32::from_le_bytes([unit[2], unit[3], unit[4], unit[5]]);
        place_fifth(lane, |column| (fifth >> column & 1) as u8, &mut block[256..]);
    }
}

/// The same of Q4_K (`UNIT` 144, `BYTES` 256) and Q5_K (176, 320).
pub(super) fn pack_with_minima<const UNIT: usize, const BYTES: usize>(
    lane: usize,
    from: &[u8],
    weights: &mut [u8],
    scales: &mut [u8],
) {
    let units = from.as_chunks::<UNIT>().0.iter();
    let panels = weights.chunks_exact_mut(SUPER_BLOCKS * BYTES);
    for ((unit, weights), scales) in units.zip(panels).zip(scales.as_chunks_mut::<MINIMA_BYTES>().0) {
        scales[lane * 2..][..2].copy_from_slice(&unit[..2]);
        scales[32 + lane * 2..][..2].copy_from_slice(&unit[2..4]);
        for (sub, block) in weights.as_chunks_mut::<BYTES>().0.iter_mut().enumerate() {
            let (scale, minimum) = scale_and_minimum(&unit[4..16], sub);
            scales[64 + sub * LANES + lane] = scale;
            scales[192 + sub * LANES + lane] = minimum;
            // Two sub-blocks share 32 bytes: low nibbles, high nibbles.
            let (bytes, shift) = (&unit[UNIT - 128 + sub / 2 * 32..][..32], 4 * (sub % 2));
            let number = |column: usize| bytes[column] >> shift & 15;
            let nibbles: [u8; 16] = std::array::from_fn(|i| number(i) | number(i + 16) << 4);
            place_nibbles(lane, &nibbles, block);
            if BYTES > 256 {
                place_fifth(lane, |column| unit[16 + column] >> sub & 1, &mut block[256..]);
            }
        }
    }
}

/// The same of Q6_K.
pub(super) fn pack_q6_k(lane: usize, from: &[u8], weights: &mut [u8], scales: &mut [u8]) {
    let units = from.as_chunks::<210>().0.iter();
    let panels = weights.chunks_exact_mut(SUPER_BLOCKS * 384);
    for ((unit, weights), scales) in units.zip(panels).zip(scales.as_chunks_mut::<SIGNED_BYTES>().0) {
        scales[lane * 2..][..2].copy_from_slice(&unit[208..]);
        for (sub, scale) in unit[192..208].iter().enumerate() {
            scales[32 + sub * LANES + lane] = *scale;
        }
        for (sub, block) in weights.as_chunks_mut::<384>().0.iter_mut().enumerate() {
            // Of each 128 columns, 64 bytes hold the nibbles (the first 64 columns low) and 32 bytes the pairs, pair k for columns 32k...
            let (half, part) = (sub / 4, sub % 4);
            let low = &unit[half * 64 + part % 2 * 32..][..32];
            let number = |column: usize| low[column] >> (part / 2 * 4) & 15;
            let nibbles: [u8; 16] = std::array::from_fn(|i| number(i) | number(i + 16) << 4);
            place_nibbles(lane, &nibbles, block);
            let pairs = &unit[128 + half * 32..][..32];
            for (column, pair) in pairs.iter().enumerate() {
                let group = column / 4;
                block[256 + group / 4 * 64 + lane * 4 + column % 4] |= (pair >> (2 * part) & 3) << (2 * (group % 4));
            }
        }
    }
}

/// Byte `i` of the 16: column `i` low, column `16 + i` high.
pub(super) fn place_nibbles(lane: usize, bytes: &[u8], block: &mut [u8]) {
    for (line, quad) in bytes.chunks_exact(4).enumerate() {
        block[line * 64 + lane * 4..][..4].copy_from_slice(quad);
    }
}

fn place_fifth(lane: usize, bit: impl Fn(usize) -> u8, line: &mut [u8]) {
    for column in 0..BLOCK {
        line[lane * 4 + column % 4] |= bit(column) << (column / 4);
    }
}

/// 6-bit scale and minimum of sub-block `index`: the first four lie in the low bits of bytes 0 to 3 and 4 to 7, whose two high bits top the
/// nibbles of bytes 8 to 11 for the last four.
fn scale_and_minimum(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        return (packed[index] & 63, packed[index + 4] & 63);
    }
    let (low, scale, minimum) = (packed[index + 4], packed[index - 4], packed[index]);
    (low & 15 | (scale >> 6) << 4, low >> 4 | (minimum >> 6) << 4)
}

/// Weight `offset` of block `block` in lane `lane` of a panel, by the format's definition.
pub(super) fn value(weight_type: WeightType, panel: (&[u8], &[u8]), block: usize, offset: usize, lane: usize) -> f32 {
    let (weights, scales) = panel;
    let half = |at: usize| f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32();
    let numbers = |bytes: usize| {
        let block = &weights[block * bytes..][..bytes];
        let byte = block[offset % 16 / 4 * 64 + lane * 4 + offset % 4];
        let nibble = if offset < 16 { byte & 15 } else { byte >> 4 };
        let (group, at) = (offset / 4, lane * 4 + offset % 4);
        let top = match bytes {
            320 => block[256 + at] >> group & 1,
            384 => block[256 + group / 4 * 64 + at] >> (2 * (group % 4)) & 3,
            _ => 0,
        };
        f32::from(nibble | top << 4)
    };
    let (of, sub) = (block / SUPER_BLOCKS, block % SUPER_BLOCKS);
    let with_minimum = |q: f32| {
        let at = of * MINIMA_BYTES;
        let (scale, minimum) = (
            scales[at + 64 + sub * LANES + lane],
            scales[at + 192 + sub * LANES + lane],
        );
        half(at + lane * 2) * f32::from(scale) * q - half(at + 32 + lane * 2) * f32::from(minimum)
    };
    match weight_type {
        WeightType::Q4_0 => half(block * 32 + lane * 2) * (numbers(256) - 8.0),
        WeightType::Q4_1 => half(block * 64 + lane * 2) * numbers(256) + half(block * 64 + 32 + lane * 2),
        WeightType::Q5_0 => half(block * 32 + lane * 2) * (numbers(320) - 16.0),
        WeightType::Q4_K => with_minimum(numbers(256)),
        WeightType::Q5_K => with_minimum(numbers(320)),
        WeightType::Q6_K => {
            let at = of * SIGNED_BYTES;
            let scale = scales[at + 32 + (2 * sub + offset / 16) * LANES + lane] as i8;
            half(at + lane * 2) * f32::from(scale) * (numbers(384) - 32.0)
        }
        WeightType::Q8_0 => {
            let byte = weights[block * 512 + offset / 4 * 64 + lane * 4 + offset % 4];
            half(block * 32 + lane * 2) * (f32::from(byte) - 128.0)
        }
        WeightType::F32 | WeightType::F16 | WeightType::Bf16 | WeightType::Bf16Pairs => f32::NAN, // Not of blocks.
    }
}
