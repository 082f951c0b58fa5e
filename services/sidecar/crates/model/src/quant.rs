//! GGUF block formats, one row to f32. The definition that kernels are tested against.

mod k_quants;
mod repack;

use half::{bf16, f16};

pub use repack::quantize_q8_0;

use crate::TensorType;

/// Expands a row (or any whole number of storage units) to f32. `bytes` and `out` must agree by [`TensorType::row_bytes`]; what does not
/// fit is left out. Products and sums in f32, in the order of ggml's reference, so the bits are its too.
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
                nibbles(&unit[2..], None, values, |q| scale * (f32::from(q) - 8.0));
            }
            TensorType::Q4_1 => {
                let (scale, minimum) = (half_at(unit, 0), half_at(unit, 2));
                nibbles(&unit[4..], None, values, |q| scale * f32::from(q) + minimum);
            }
            TensorType::Q5_0 => {
                let scale = half_at(unit, 0);
                nibbles(&unit[6..], Some(u32_at(unit, 2)), values, |q| {
                    scale * (f32::from(q) - 16.0)
                });
            }
            TensorType::Q5_1 => {
                let (scale, minimum) = (half_at(unit, 0), half_at(unit, 2));
                nibbles(&unit[8..], Some(u32_at(unit, 4)), values, |q| {
                    scale * f32::from(q) + minimum
                });
            }
            TensorType::Q4_K => k_quants::q4_k(unit, values),
            TensorType::Q5_K => k_quants::q5_k(unit, values),
            TensorType::Q6_K => k_quants::q6_k(unit, values),
        }
    }
}

/// Walks a block of 32: byte `i` holds element `i` in its low and element `16 + i` in its high nibble; bit `e` of `fifth` is the fifth bit of
/// element `e`.
fn nibbles(bytes: &[u8], fifth: Option<u32>, values: &mut [f32], value: impl Fn(u8) -> f32) {
    let fifth = fifth.unwrap_or(0);
    let bit = |element: usize| ((fifth >> element & 1) as u8) << 4;
    for (i, byte) in bytes.iter().enumerate() {
        values[i] = value(byte & 15 | bit(i));
        values[i + 16] = value(byte >> 4 | bit(i + 16));
    }
}

pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
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
    fn bytes_are_signed_in_q8_0() {
        let mut unit = vec![0u8; 34];
        unit[..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        unit[2] = 0x80;
        let mut out = [0.0; 32];
        dequantize(TensorType::Q8_0, &unit, &mut out);
        assert_eq!(out[0], -32.0);
    }
}
