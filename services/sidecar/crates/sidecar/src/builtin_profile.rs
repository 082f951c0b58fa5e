//! The codec profile that every sidecar has: raw and lossless, with one table of exponents for all channels.
//!
//! A model's own profile knows each channel and is smaller; this one needs nothing but the layout, so that two sidecars that never met can
//! send lossless frames to each other.

use kvasir_codec::{CodecError, ExponentTables, KvShapeOfModel, Profile, ProfileId};
use kvasir_kernels::{KvDtype, RansTable};
use sha2::{Digest, Sha256};

/// Of the tables below; a change of them needs another.
const NAME: &str = "kvasir exponents 1";
const SYMBOLS: i32 = 32;
/// All frequencies of a table.
const TOTAL: f64 = 32_768.0;
/// Powers of two among which sizes of KV elements are taken for equally likely.
const LIKELY: std::ops::RangeInclusive<i32> = -3..=2;

/// The built-in profile of a layout, and its id.
///
/// # Errors
/// [`CodecError`] when the codec takes no such table: a defect.
pub fn builtin_profile(shape: &KvShapeOfModel) -> Result<(Profile, ProfileId), CodecError> {
    let channels = shape.layer_count * 2 * shape.kv_head_count * shape.head_size;
    // The first exponent of the window, and what is subtracted from an exponent to get the power of two.
    let (first, bias) = match shape.dtype {
        KvDtype::F16 => (0, 15),
        KvDtype::Bf16 | KvDtype::F32 => (101, 127),
    };
    let weights: Vec<f64> = (first..first + SYMBOLS)
        .map(|exponent| weight(exponent - bias))
        .collect();
    let table = RansTable::new(&frequencies(&weights))?;
    let profile = Profile {
        model_revision: String::new(),
        rope: String::new(),
        layer_count: shape.layer_count,
        kv_head_count: shape.kv_head_count,
        head_size: shape.head_size,
        first_token: vec![0.0; channels],
        exponents: ExponentTables {
            dtype: shape.dtype,
            bases: vec![first as u8; channels],
            tables: vec![table; channels],
        },
        rotation: None,
        levels: Vec::new(),
    };
    let described = format!(
        "{NAME} {:?} {} {} {}",
        shape.dtype, shape.layer_count, shape.kv_head_count, shape.head_size
    );
    let mut id = ProfileId::default();
    id.0.copy_from_slice(&Sha256::digest(described)[..16]);
    Ok((profile, id))
}

/// How likely an element is between 2^power and twice that: numbers around 0 halve with each power below their spread, and die out above it.
fn weight(power: i32) -> f64 {
    if power < *LIKELY.start() {
        2f64.powi(power - LIKELY.start())
    } else {
        0.4f64.powi((power - LIKELY.end()).max(0))
    }
}

/// Whole numbers of the same shares, none of them zero.
fn frequencies(weights: &[f64]) -> Vec<u16> {
    let sum: f64 = weights.iter().sum();
    let spare = TOTAL - weights.len() as f64;
    let mut frequencies: Vec<u16> = weights.iter().map(|weight| 1 + (weight / sum * spare) as u16).collect();
    let missing = TOTAL as u16 - frequencies.iter().sum::<u16>();
    if let Some(largest) = frequencies.iter_mut().max() {
        *largest += missing;
    }
    frequencies
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_codec::{Chunk, ChunkRange, Codec, LEVEL_LOSSLESS, Prepared};
    use std::sync::Arc;

    /// Every bit comes back, also of numbers that no table has; numbers like KV take less room than they did.
    #[test]
    fn what_is_like_kv_gets_smaller_and_everything_comes_back() {
        for (dtype, most) in [(KvDtype::Bf16, 0.78), (KvDtype::F16, 0.95), (KvDtype::F32, 0.88)] {
            let shape = KvShapeOfModel {
                dtype,
                layer_count: 2,
                kv_head_count: 2,
                head_size: 32,
                inverse_frequencies: Vec::new(),
                fingerprint: [3; 16],
            };
            let (profile, id) = builtin_profile(&shape).expect("a profile");
            let prepared = Arc::new(Prepared::new(profile, id).expect("it fits"));
            let mut codec = Codec::new(shape, Some(prepared)).expect("a codec");
            let tokens = 64;
            let mut state = 7_u64;
            let mut uniform = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / (1 << 24) as f32 - 0.5
            };
            let values: Vec<f32> = (0..2 * 2 * 2 * 32 * tokens)
                .map(|index| match index {
                    5 => 0.0,
                    6 => f32::INFINITY,
                    7 => f32::NAN,
                    8 => 3.0e30,
                    _ => (0..6).map(|_| uniform()).sum(),
                })
                .collect();
            let packed: Vec<u8> = match dtype {
                KvDtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                KvDtype::F16 => {
                    let bits = values.iter().map(|value| half::f16::from_f32(*value));
                    bits.flat_map(half::f16::to_le_bytes).collect()
                }
                KvDtype::Bf16 => {
                    let bits = values.iter().map(|value| half::bf16::from_f32(*value));
                    bits.flat_map(half::bf16::to_le_bytes).collect()
                }
            };
            let range = ChunkRange {
                token_begin: 16,
                token_count: tokens,
                layers: 0..2,
            };
            let (mut bytes, mut back) = (Vec::new(), Vec::new());
            codec
                .encode(LEVEL_LOSSLESS, &range, &packed, &mut bytes)
                .expect("encoded");
            codec
                .decode(&Chunk::read(&bytes).expect("a chunk").0, &mut back)
                .expect("decoded");
            assert!(back == packed, "{dtype:?}: bits differ");
            let share = bytes.len() as f64 / packed.len() as f64;
            assert!(share < most, "{dtype:?}: {share}");
        }
    }
}
