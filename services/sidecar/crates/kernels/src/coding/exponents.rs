//! Floating-point numbers taken apart: exponents, of which few are likely, and the rest, which looks like noise.
//!
//! ```text
//! elements  [tokens][dims], little endian
//! symbols   [dims][tokens] exponents counted from a base of their column; for f16 then [dims][tokens] of sign and two mantissa bits
//! rest      [tokens][dims] of sign and mantissa: 1 byte of bf16, 3 of f32; of f16 the low 8 mantissa bits
//! ```

use super::symbols::OutOfRange;
use crate::error::{KernelError, expect_len};
use crate::kv_pool::KvDtype;

impl KvDtype {
    /// Bytes of an element that are kept as they are.
    pub fn rest_bytes(self) -> usize {
        match self {
            Self::F32 => 3,
            Self::F16 | Self::Bf16 => 1,
        }
    }

    /// Planes of symbols of a column.
    pub fn exponent_planes(self) -> usize {
        if self == Self::F16 { 2 } else { 1 }
    }
}

/// Takes elements apart. An exponent `e` of column `d` becomes `e - bases[d]` when that is below 32, else 0 and an entry in `beyond`, whose
/// `steps` are the exponent itself.
///
/// # Errors
/// [`KernelError::ShapeMismatch`].
pub fn split_exponents(
    dtype: KvDtype,
    bases: &[u8],
    tokens: usize,
    elements: &[u8],
    symbols: &mut [u8],
    rest: &mut [u8],
    beyond: &mut Vec<OutOfRange>,
) -> Result<(), KernelError> {
    let dims = bases.len();
    check(dtype, dims, tokens, elements.len(), symbols.len(), rest.len())?;
    let (plane, extra) = symbols.split_at_mut(dims * tokens);
    for token in 0..tokens {
        for dim in 0..dims {
            let (index, place) = (token * dims + dim, dim * tokens + token);
            let exponent = match dtype {
                KvDtype::Bf16 => {
                    let bits = u16::from_le_bytes([elements[2 * index], elements[2 * index + 1]]);
                    rest[index] = (bits >> 8 & 0x80 | bits & 0x7f) as u8;
                    (bits >> 7) as u8
                }
                KvDtype::F16 => {
                    let bits = u16::from_le_bytes([elements[2 * index], elements[2 * index + 1]]);
                    rest[index] = bits as u8;
                    extra[place] = (bits >> 13 & 4 | bits >> 8 & 3) as u8;
                    (bits >> 10 & 31) as u8
                }
                KvDtype::F32 => {
                    let bytes = &elements[4 * index..4 * index + 4];
                    let top = u16::from_le_bytes([bytes[2], bytes[3]]);
                    rest[3 * index..3 * index + 2].copy_from_slice(&bytes[..2]);
                    rest[3 * index + 2] = (top >> 8 & 0x80 | top & 0x7f) as u8;
                    (top >> 7) as u8
                }
            };
            let symbol = exponent.wrapping_sub(bases[dim]);
            if symbol < 32 {
                plane[place] = symbol;
            } else {
                plane[place] = 0;
                beyond.push(OutOfRange {
                    token: token as u32,
                    axis: dim as u32,
                    steps: i32::from(exponent),
                });
            }
        }
    }
    Ok(())
}

/// Puts elements together again. Exponents out of range are then set with [`KvDtype::set_exponent`].
///
/// # Errors
/// [`KernelError::ShapeMismatch`].
pub fn join_exponents(
    dtype: KvDtype,
    bases: &[u8],
    tokens: usize,
    symbols: &[u8],
    rest: &[u8],
    elements: &mut [u8],
) -> Result<(), KernelError> {
    let dims = bases.len();
    check(dtype, dims, tokens, elements.len(), symbols.len(), rest.len())?;
    let (plane, extra) = symbols.split_at(dims * tokens);
    for token in 0..tokens {
        for dim in 0..dims {
            let (index, place) = (token * dims + dim, dim * tokens + token);
            let exponent = u16::from(plane[place].wrapping_add(bases[dim]));
            match dtype {
                KvDtype::Bf16 => {
                    let rest = u16::from(rest[index]);
                    let bits = (rest & 0x80) << 8 | exponent << 7 | rest & 0x7f;
                    elements[2 * index..2 * index + 2].copy_from_slice(&bits.to_le_bytes());
                }
                KvDtype::F16 => {
                    let extra = u16::from(extra[place]);
                    let bits = (extra & 4) << 13 | (exponent & 31) << 10 | (extra & 3) << 8 | u16::from(rest[index]);
                    elements[2 * index..2 * index + 2].copy_from_slice(&bits.to_le_bytes());
                }
                KvDtype::F32 => {
                    let top = u16::from(rest[3 * index + 2]);
                    let top = (top & 0x80) << 8 | exponent << 7 | top & 0x7f;
                    let to = &mut elements[4 * index..4 * index + 4];
                    to[..2].copy_from_slice(&rest[3 * index..3 * index + 2]);
                    to[2..].copy_from_slice(&top.to_le_bytes());
                }
            }
        }
    }
    Ok(())
}

impl KvDtype {
    /// Replaces the exponent of an element.
    pub fn set_exponent(self, element: &mut [u8], exponent: u8) {
        let (bits, mask) = match self {
            Self::F16 => (u16::from(exponent & 31) << 10, 0x7c00),
            Self::Bf16 | Self::F32 => (u16::from(exponent) << 7, 0x7f80),
        };
        if let Some(top) = element.last_chunk_mut::<2>() {
            *top = (u16::from_le_bytes(*top) & !mask | bits).to_le_bytes();
        }
    }
}

fn check(
    dtype: KvDtype,
    dims: usize,
    tokens: usize,
    elements: usize,
    symbols: usize,
    rest: usize,
) -> Result<(), KernelError> {
    expect_len("elements", dims * tokens * dtype.byte_size(), elements)?;
    expect_len("symbols", dims * tokens * dtype.exponent_planes(), symbols)?;
    expect_len("rest", dims * tokens * dtype.rest_bytes(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::Noise;

    #[test]
    fn every_bit_comes_back_whatever_the_exponents() {
        for dtype in [KvDtype::Bf16, KvDtype::F16, KvDtype::F32] {
            let (dims, tokens) = (24, 37);
            let mut noise = Noise::new(3);
            let elements: Vec<u8> = (0..dims * tokens * dtype.byte_size())
                .map(|_| noise.bits() as u8)
                .collect();
            let bases: Vec<u8> = (0..dims).map(|dim| (dim * 10) as u8).collect();
            let mut symbols = vec![0; dims * tokens * dtype.exponent_planes()];
            let (mut rest, mut beyond) = (vec![0; dims * tokens * dtype.rest_bytes()], Vec::new());
            split_exponents(dtype, &bases, tokens, &elements, &mut symbols, &mut rest, &mut beyond).unwrap();
            assert!(symbols.iter().all(|symbol| *symbol < 32) && !beyond.is_empty());
            let mut back = vec![0; elements.len()];
            join_exponents(dtype, &bases, tokens, &symbols, &rest, &mut back).unwrap();
            for one in &beyond {
                let at = (one.token as usize * dims + one.axis as usize) * dtype.byte_size();
                dtype.set_exponent(&mut back[at..at + dtype.byte_size()], one.steps as u8);
            }
            assert_eq!(back, elements, "{dtype:?}");
        }
    }
}
