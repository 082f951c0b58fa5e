//! GGUF block formats, one block of 32 elements to f32. The definition that kernels are tested against.

use half::{bf16, f16};

use crate::TensorType;

/// Expands a row (or any whole number of storage units) to f32. `bytes` and `out` must agree by [`TensorType::row_bytes`]; what does not
/// fit is left out.
pub fn dequantize(tensor_type: TensorType, bytes: &[u8], out: &mut [f32]) {
    let unit_bytes = tensor_type.block_bytes();
    let unit_len = tensor_type.block_len();
    for (unit, values) in bytes.chunks_exact(unit_bytes).zip(out.chunks_exact_mut(unit_len)) {
        match tensor_type {
            TensorType::F32 => values[0] = f32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]),
            TensorType::F16 => values[0] = half_at(unit, 0),
            TensorType::Bf16 => values[0] = bf16::from_le_bytes([unit[0], unit[1]]).to_f32(),
            TensorType::Q8_0 => {
                let scale = half_at(unit, 0);
                for (value, byte) in values.iter_mut().zip(&unit[2..]) {
                    *value = scale * f32::from(*byte as i8);
                }
            }
            TensorType::Q4_0 => {
                let scale = half_at(unit, 0);
                for (i, byte) in unit[2..].iter().enumerate() {
                    values[i] = scale * (f32::from(byte & 15) - 8.0);
                    values[i + 16] = scale * (f32::from(byte >> 4) - 8.0);
                }
            }
            TensorType::Q4_1 => {
                let (scale, minimum) = (half_at(unit, 0), half_at(unit, 2));
                for (i, byte) in unit[4..].iter().enumerate() {
                    values[i] = scale * f32::from(byte & 15) + minimum;
                    values[i + 16] = scale * f32::from(byte >> 4) + minimum;
                }
            }
        }
    }
}

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

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_are_split_low_half_first() {
        let mut unit = vec![0u8; 20];
        unit[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        unit[2..4].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
        unit[4] = 0xf3;
        let mut out = [0.0; 32];
        dequantize(TensorType::Q4_1, &unit, &mut out);
        assert_eq!((out[0], out[16], out[1]), (0.5, 6.5, -1.0));
    }

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

    #[test]
    fn bytes_are_signed_in_q8_0() {
        let mut unit = vec![0u8; 34];
        unit[..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        unit[2] = 0x80;
        let mut out = [0.0; 32];
        dequantize(TensorType::Q8_0, &unit, &mut out);
        assert_eq!(out[0], -32.0);
    }
}
