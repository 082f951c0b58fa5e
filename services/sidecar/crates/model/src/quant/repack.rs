//! From one block format to another.

use half::f16;

use super::half_at;
use super::k_quants::scale_and_minimum;
use crate::TensorType;

/// Rounds values to Q8_0: for each 32 the scale largest magnitude / 127 in f16, then bytes. What is left after the last whole block is left
/// out. Relative error of a value at most 1/254 of its block's largest magnitude, plus the rounding of the scale.
pub fn quantize_q8_0(values: &[f32]) -> Vec<u8> {
    let block_len = TensorType::Q8_0.block_len();
    let mut bytes = Vec::with_capacity(values.len() / block_len * TensorType::Q8_0.block_bytes());
    for block in values.chunks_exact(block_len) {
        let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        // The rounded scale is what bytes are multiplied with, so it is what they are divided by.
        let scale = f16::from_f32(largest / 127.0);
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        bytes.extend(scale.to_le_bytes());
        bytes.extend(
            block
                .iter()
                .map(|value| (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8),
        );
    }
    bytes
}

/// Q5_0 in the bytes of Q8_0: the same scale, each 5-bit number widened. Exact.
pub fn q8_0_from_q5_0(bytes: &[u8]) -> Vec<u8> {
    let unit_bytes = TensorType::Q5_0.block_bytes();
    let mut out = Vec::with_capacity(bytes.len() / unit_bytes * TensorType::Q8_0.block_bytes());
    for unit in bytes.chunks_exact(unit_bytes) {
        out.extend(&unit[..2]);
        for element in 0..32 {
            let nibble = unit[6 + element % 16] >> (element / 16 * 4) & 15;
            let fifth = unit[2 + element / 8] >> (element % 8) & 1;
            out.push((nibble | fifth << 4).wrapping_sub(16));
        }
    }
    out
}

/// Q4_K as eight Q4_1 blocks each: the same nibbles; a sub-block's scale and minimum, products of f16 and 6 bits, are rounded to f16 (relative
/// error 2⁻¹¹ while they are normal numbers of f16, absolute error 2⁻²⁵ below).
pub fn q4_1_from_q4_k(bytes: &[u8]) -> Vec<u8> {
    let unit_bytes = TensorType::Q4_K.block_bytes();
    let mut out = Vec::with_capacity(bytes.len() / unit_bytes * 8 * TensorType::Q4_1.block_bytes());
    for unit in bytes.chunks_exact(unit_bytes) {
        let (d, dmin) = (half_at(unit, 0), half_at(unit, 2));
        for sub_block in 0..8 {
            let (scale, minimum) = scale_and_minimum(&unit[4..16], sub_block);
            out.extend(f16::from_f32(d * f32::from(scale)).to_le_bytes());
            out.extend(f16::from_f32(-dmin * f32::from(minimum)).to_le_bytes());
            let nibbles = &unit[16 + sub_block / 2 * 32..][..32];
            let shift = 4 * (sub_block % 2);
            let nibble = |element: usize| nibbles[element] >> shift & 15;
            out.extend((0..16).map(|i| nibble(i) | nibble(i + 16) << 4));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantize;

    #[test]
    fn q8_0_is_near_what_it_was_made_of() {
        let values: Vec<f32> = (0..96_u32)
            .map(|i| ((i * 37 % 64) as f32 - 31.5) * if i < 32 { 0.0 } else { 1.7 })
            .collect();
        let bytes = quantize_q8_0(&values);
        let mut back = vec![1.0; 96];
        dequantize(TensorType::Q8_0, &bytes, &mut back);
        let largest = 31.5 * 1.7;
        assert!(values.iter().zip(&back).all(|(a, b)| (a - b).abs() <= largest / 250.0));
        assert_eq!(back[..32], [0.0; 32], "a block of zeros stays zero");
    }

    /// Units of arbitrary bytes whose f16 fields at `scales_at` are `scale` and its multiples.
    fn units(tensor_type: TensorType, scales_at: &[usize], scale: f32) -> Vec<u8> {
        let unit_bytes = tensor_type.block_bytes();
        let mut bytes: Vec<u8> = (0..unit_bytes * 6).map(|i| (i * 151 + i / 7 * 83) as u8).collect();
        for (index, unit) in bytes.chunks_exact_mut(unit_bytes).enumerate() {
            for at in scales_at {
                unit[*at..at + 2].copy_from_slice(&f16::from_f32(scale * (index + at + 1) as f32).to_le_bytes());
            }
        }
        bytes
    }

    fn values(tensor_type: TensorType, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; bytes.len() / tensor_type.block_bytes() * tensor_type.block_len()];
        dequantize(tensor_type, bytes, &mut out);
        out
    }

    #[test]
    fn q5_0_loses_nothing() {
        let bytes = units(TensorType::Q5_0, &[0], 0.01);
        let expected = values(TensorType::Q5_0, &bytes);
        assert_eq!(values(TensorType::Q8_0, &q8_0_from_q5_0(&bytes)), expected);
    }

    #[test]
    fn q4_k_loses_the_rounding_of_its_scales() {
        let bytes = units(TensorType::Q4_K, &[0, 2], 3e-4);
        let expected = values(TensorType::Q4_K, &bytes);
        let found = values(TensorType::Q4_1, &q4_1_from_q4_k(&bytes));
        let mut differ = 0;
        for (unit, (expected, found)) in expected.chunks(256).zip(found.chunks(256)).enumerate() {
            // Terms are at most 63 · 15 d and 63 dmin, each with a relative error of 2⁻¹¹.
            let largest = 63.0 * (15.0 * 3e-4 * (unit + 1) as f32 + 3e-4 * (unit + 3) as f32);
            for (a, b) in expected.iter().zip(found) {
                assert!((a - b).abs() <= largest / 2047.0, "{a} {b}");
                differ += usize::from(a != b);
            }
        }
        assert!(differ > 0, "six-bit products of f16 do not all fit f16");
    }
}
