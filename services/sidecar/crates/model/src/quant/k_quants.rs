//! The K-quants: blocks of 256 whose sub-blocks have small integer scales of their own.
//!
//! ```text
//! Q4_K  144 bytes: f16 d, f16 dmin, 12 bytes of 6-bit (scale, minimum) for 8 sub-blocks of 32, 128 bytes of nibbles
//! Q5_K  176 bytes: the same with 32 bytes of fifth bits before the nibbles
//! Q6_K  210 bytes: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales for sub-blocks of 16, f16 d
//! ```
//!
//! Source: ggml's `ggml-quants.c`, the format's definition.

use super::half_at;

/// 6-bit scale and minimum of sub-block `index` (0 to 7) of Q4_K and Q5_K. The first four lie in the low bits of bytes 0 to 3 and 4 to 7, whose
/// two high bits top the nibbles of bytes 8 to 11 for the last four.
fn scale_and_minimum(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        return (packed[index] & 63, packed[index + 4] & 63);
    }
    let (low, scale, minimum) = (packed[index + 4], packed[index - 4], packed[index]);
    (low & 15 | (scale >> 6) << 4, low >> 4 | (minimum >> 6) << 4)
}

/// `w = (d · scale) q - dmin · minimum`, q of 4 bits. Each 32 bytes hold two sub-blocks: low nibbles, then high ones.
pub(super) fn q4_k(unit: &[u8], values: &mut [f32]) {
    with_minima(unit, 16, values, |_, _| 0);
}

/// The same, q of 5 bits: bit `sub-block` of byte `i` of the 32 is the fifth bit of element `i`.
pub(super) fn q5_k(unit: &[u8], values: &mut [f32]) {
    with_minima(unit, 48, values, |sub_block, i| (unit[16 + i] >> sub_block & 1) << 4);
}

fn with_minima(unit: &[u8], nibbles_at: usize, values: &mut [f32], fifth: impl Fn(usize, usize) -> u8) {
    let (d, dmin) = (half_at(unit, 0), half_at(unit, 2));
    for (sub_block, values) in values.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&unit[4..16], sub_block);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let bytes = &unit[nibbles_at + sub_block / 2 * 32..][..32];
        for (i, (value, byte)) in values.iter_mut().zip(bytes).enumerate() {
            let nibble = byte >> (4 * (sub_block % 2)) & 15;
            *value = scale * f32::from(nibble | fifth(sub_block, i)) - minimum;
        }
    }
}

/// `w = (d · scale) (q - 32)`, q of 6 bits. Each half of 128 elements has 64 bytes of nibbles (elements 0 to 63 low, 64 to 127 high) and 32
/// bytes of bit pairs (pair `k` of byte `i` for element `32 k + i`).
pub(super) fn q6_k(unit: &[u8], values: &mut [f32]) {
    let (d, scales) = (half_at(unit, 208), &unit[192..208]);
    for (element, value) in values.iter_mut().enumerate() {
        let (half, within) = (element / 128, element % 128);
        let nibble = unit[half * 64 + within % 64] >> (within / 64 * 4) & 15;
        let pair = unit[128 + half * 32 + within % 32] >> (within / 32 * 2) & 3;
        let scale = f32::from(scales[element / 16] as i8);
        *value = d * scale * (f32::from(nibble | pair << 4) - 32.0);
    }
}
