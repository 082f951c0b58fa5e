//! Floating-point numbers taken apart: exponents, of which few are likely, and the rest, which looks like noise.
//!
//! ```text
//! elements  [tokens][dims], little endian
//! symbols   [dims][stride] exponents counted from a base of their column; the stride is `tokens` rounded up to 16
//! rest      [tokens][dims] of sign and mantissa: 1 byte of bf16, 3 of f32; of f16 the low 8 mantissa bits
//! extra     [tokens][dims] of f16's sign and two mantissa bits, below 8; nothing for the others
//! ```

use super::columns::column_stride;
use super::symbols::OutOfRange;
use super::transpose::transpose_bytes;
use crate::error::{KernelError, expect_len};
use crate::isa::{Isa, Kernel};
use crate::kv_pool::KvDtype;
use crate::simd::Simd;

impl KvDtype {
    /// Bytes of an element that are kept as they are.
    pub fn rest_bytes(self) -> usize {
        match self {
            Self::F32 => 3,
            Self::F16 | Self::Bf16 => 1,
        }
    }

    /// Bits that are kept beside those bytes.
    pub fn extra_bits(self) -> u32 {
        if self == Self::F16 { 3 } else { 0 }
    }

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

/// What an element consists of beside its exponent.
pub struct Rest<T> {
    /// See the module.
    pub bytes: T,
    /// See the module.
    pub extra: T,
}

/// The exponents of each column that its table knows: `counts[d]` of them from `bases[d]` on.
#[derive(Debug, Clone, Copy)]
pub struct ExponentWindows<'a> {
    /// First.
    pub bases: &'a [u8],
    /// How many.
    pub counts: &'a [u8],
}

/// Takes one head's elements apart. An exponent outside its column's window becomes symbol 0 and an entry in `beyond`, whose `steps` are the
/// exponent itself.
///
/// # Errors
/// [`KernelError::ShapeMismatch`].
pub fn split_exponents(
    isa: Isa,
    dtype: KvDtype,
    windows: ExponentWindows<'_>,
    elements: &[u8],
    symbols: &mut [u8],
    rest: Rest<&mut [u8]>,
    beyond: &mut Vec<OutOfRange>,
) -> Result<(), KernelError> {
    let (dims, tokens) = check(dtype, windows, elements.len(), symbols.len(), rest.bytes, rest.extra)?;
    let mut rows = vec![0; dims * tokens];
    isa.run(Split {
        dtype,
        windows,
        elements,
        rows: &mut rows,
        rest,
        beyond,
    });
    transpose_bytes((&rows, dims), (symbols, column_stride(tokens)), tokens, dims);
    Ok(())
}

/// Puts one head's elements together again. Exponents outside their windows are then set with [`KvDtype::set_exponent`].
///
/// # Errors
/// [`KernelError::ShapeMismatch`].
pub fn join_exponents(
    isa: Isa,
    dtype: KvDtype,
    windows: ExponentWindows<'_>,
    symbols: &[u8],
    rest: Rest<&[u8]>,
    elements: &mut [u8],
) -> Result<(), KernelError> {
    let (dims, tokens) = check(dtype, windows, elements.len(), symbols.len(), rest.bytes, rest.extra)?;
    let mut rows = vec![0; dims * tokens];
    transpose_bytes((symbols, column_stride(tokens)), (&mut rows, dims), dims, tokens);
    isa.run(Join {
        dtype,
        bases: windows.bases,
        rows: &rows,
        rest,
        elements,
    });
    Ok(())
}

/// Columns and tokens.
fn check(
    dtype: KvDtype,
    windows: ExponentWindows<'_>,
    elements: usize,
    symbols: usize,
    rest: &[u8],
    extra: &[u8],
) -> Result<(usize, usize), KernelError> {
    let dims = windows.bases.len();
    expect_len("windows", dims, windows.counts.len())?;
    let tokens = elements / (dims * dtype.byte_size()).max(1);
    expect_len("elements", dims * tokens * dtype.byte_size(), elements)?;
    expect_len("symbols", dims * column_stride(tokens), symbols)?;
    expect_len("rest", dims * tokens * dtype.rest_bytes(), rest.len())?;
    let extras = if dtype.extra_bits() > 0 { dims * tokens } else { 0 };
    expect_len("extra bits", extras, extra.len())?;
    Ok((dims, tokens))
}

struct Split<'a> {
    dtype: KvDtype,
    windows: ExponentWindows<'a>,
    elements: &'a [u8],
    rows: &'a mut [u8],
    rest: Rest<&'a mut [u8]>,
    beyond: &'a mut Vec<OutOfRange>,
}

impl Kernel for Split<'_> {
    type Output = ();
    // Loops over bytes without dependences: the compiler makes vectors of them.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let ExponentWindows { bases, counts } = self.windows;
        let dims = bases.len();
        let size = self.dtype.byte_size();
        for (token, (elements, row)) in self
            .elements
            .chunks_exact(dims * size)
            .zip(self.rows.chunks_exact_mut(dims))
            .enumerate()
        {
            let range = token * dims..(token + 1) * dims;
            match self.dtype {
                KvDtype::Bf16 => {
                    let rest = &mut self.rest.bytes[range];
                    for ((bytes, row), rest) in elements.as_chunks().0.iter().zip(&mut *row).zip(rest) {
                        let bits = u16::from_le_bytes(*bytes);
                        *rest = (bits >> 8 & 0x80 | bits & 0x7f) as u8;
                        *row = (bits >> 7) as u8;
                    }
                }
                KvDtype::F16 => {
                    let rest = &mut self.rest.bytes[range.clone()];
                    let extra = &mut self.rest.extra[range];
                    for (((bytes, row), rest), extra) in
                        elements.as_chunks().0.iter().zip(&mut *row).zip(rest).zip(extra)
                    {
                        let bits = u16::from_le_bytes(*bytes);
                        *rest = bits as u8;
                        *extra = (bits >> 13 & 4 | bits >> 8 & 3) as u8;
                        *row = (bits >> 10 & 31) as u8;
                    }
                }
                KvDtype::F32 => {
                    let rest = &mut self.rest.bytes[3 * range.start..3 * range.end];
                    let rest = rest.as_chunks_mut::<3>().0;
                    for ((bytes, row), rest) in elements.as_chunks::<4>().0.iter().zip(&mut *row).zip(rest) {
                        let top = u16::from_le_bytes([bytes[2], bytes[3]]);
                        *rest = [bytes[0], bytes[1], (top >> 8 & 0x80 | top & 0x7f) as u8];
                        *row = (top >> 7) as u8;
                    }
                }
            }
            let mut unknown = 0;
            for ((exponent, base), count) in row.iter_mut().zip(bases).zip(counts) {
                *exponent = exponent.wrapping_sub(*base);
                unknown |= u8::from(*exponent >= *count);
            }
            if unknown > 0 {
                for (dim, symbol) in row.iter_mut().enumerate() {
                    if *symbol >= counts[dim] {
                        self.beyond.push(OutOfRange {
                            token: token as u32,
                            axis: dim as u32,
                            steps: i32::from(symbol.wrapping_add(bases[dim])),
                        });
                        *symbol = 0;
                    }
                }
            }
        }
    }
}

struct Join<'a> {
    dtype: KvDtype,
    bases: &'a [u8],
    rows: &'a [u8],
    rest: Rest<&'a [u8]>,
    elements: &'a mut [u8],
}

impl Kernel for Join<'_> {
    type Output = ();
    // As above.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let dims = self.bases.len();
        let size = self.dtype.byte_size();
        for (token, (elements, row)) in self
            .elements
            .chunks_exact_mut(dims * size)
            .zip(self.rows.chunks_exact(dims))
            .enumerate()
        {
            let range = token * dims..(token + 1) * dims;
            let exponents = row
                .iter()
                .zip(self.bases)
                .map(|(symbol, base)| symbol.wrapping_add(*base));
            match self.dtype {
                KvDtype::Bf16 => {
                    let rest = &self.rest.bytes[range];
                    for ((to, exponent), rest) in elements.as_chunks_mut().0.iter_mut().zip(exponents).zip(rest) {
                        let rest = u16::from(*rest);
                        *to = ((rest & 0x80) << 8 | u16::from(exponent) << 7 | rest & 0x7f).to_le_bytes();
                    }
                }
                KvDtype::F16 => {
                    let (rest, extra) = (&self.rest.bytes[range.clone()], &self.rest.extra[range]);
                    for (((to, exponent), rest), extra) in elements
                        .as_chunks_mut()
                        .0
                        .iter_mut()
                        .zip(exponents)
                        .zip(rest)
                        .zip(extra)
                    {
                        let (exponent, extra) = (u16::from(exponent & 31), u16::from(*extra));
                        let top = (extra & 4) << 13 | exponent << 10 | (extra & 3) << 8;
                        *to = (top | u16::from(*rest)).to_le_bytes();
                    }
                }
                KvDtype::F32 => {
                    let rest = self.rest.bytes[3 * range.start..3 * range.end].as_chunks::<3>().0;
                    for ((to, exponent), rest) in elements.as_chunks_mut::<4>().0.iter_mut().zip(exponents).zip(rest) {
                        let top = u16::from(rest[2]);
                        let top = (top & 0x80) << 8 | u16::from(exponent) << 7 | top & 0x7f;
                        let [low, high] = top.to_le_bytes();
                        *to = [rest[0], rest[1], low, high];
                    }
                }
            }
        }
    }
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
            let counts: Vec<u8> = (0..dims).map(|dim| 32 - (dim % 5) as u8).collect();
            let windows = ExponentWindows {
                bases: &bases,
                counts: &counts,
            };
            let mut first = None;
            for isa in Isa::available() {
                let extras = if dtype == KvDtype::F16 { dims * tokens } else { 0 };
                let mut symbols = vec![0; dims * column_stride(tokens)];
                let (mut rest, mut extra) = (vec![0; dims * tokens * dtype.rest_bytes()], vec![0; extras]);
                let mut beyond = Vec::new();
                let to = Rest {
                    bytes: &mut rest[..],
                    extra: &mut extra[..],
                };
                split_exponents(isa, dtype, windows, &elements, &mut symbols, to, &mut beyond).unwrap();
                for (column, count) in symbols.chunks_exact(column_stride(tokens)).zip(&counts) {
                    assert!(column[..tokens].iter().all(|symbol| symbol < count));
                }
                assert!(!beyond.is_empty() && extra.iter().all(|extra| *extra < 8));
                let mut back = vec![0; elements.len()];
                let from = Rest {
                    bytes: &rest[..],
                    extra: &extra[..],
                };
                join_exponents(isa, dtype, windows, &symbols, from, &mut back).unwrap();
                for one in &beyond {
                    let at = (one.token as usize * dims + one.axis as usize) * dtype.byte_size();
                    dtype.set_exponent(&mut back[at..at + dtype.byte_size()], one.steps as u8);
                }
                assert_eq!(back, elements, "{dtype:?}");
                let now = (symbols, rest, extra, beyond);
                assert_eq!(first.get_or_insert_with(|| now.clone()), &now);
            }
        }
    }
}
