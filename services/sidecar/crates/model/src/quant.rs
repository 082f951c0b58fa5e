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
    fn bytes_are_signed_in_q8_0() {
        let mut unit = vec![0u8; 34];
        unit[..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        unit[2] = 0x80;
        let mut out = [0.0; 32];
        dequantize(TensorType::Q8_0, &unit, &mut out);
        assert_eq!(out[0], -32.0);
    }
}
