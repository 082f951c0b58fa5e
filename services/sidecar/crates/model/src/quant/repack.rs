//! From one block format to another.

use half::f16;

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
}
