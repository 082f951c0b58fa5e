//! KV as it is packed for the wire, one head after the other, and rows of numbers in which a token's channels stand side by side.
//!
//! ```text
//! packed  [layer][K, V][kv_head][token][head_size] in the pool's type, keys rotated
//! rows    [token][layer][K, V][kv_head][head_size] of f32, keys as they were before rotation
//! ```

use crate::error::{KernelError, expect_len};
use crate::isa::{Isa, Kernel};
use crate::kv_pool::KvDtype;
use crate::place::Widen;
use crate::rope::{Narrow, Rotate};
use crate::simd::Simd;

/// Sizes of packed KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedShape {
    /// Element type.
    pub dtype: KvDtype,
    /// Layers.
    pub layers: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_size: usize,
    /// Tokens.
    pub tokens: usize,
}

impl PackedShape {
    /// Elements of a token.
    pub fn width(&self) -> usize {
        self.layers * 2 * self.kv_heads * self.head_size
    }

    /// Bytes in all.
    pub fn byte_len(&self) -> usize {
        self.width() * self.tokens * self.dtype.byte_size()
    }

    fn head_bytes(&self) -> usize {
        self.tokens * self.head_size * self.dtype.byte_size()
    }
}

/// Cosines and sines of the keys of consecutive tokens, as the engine rotated them; see [`crate::RopeTable`].
#[derive(Debug, Clone, Default)]
pub struct KeyTurns {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same negated: what turns back.
    nis: Vec<f32>,
}

impl KeyTurns {
    /// Turns of `tokens` tokens from position `begin`: the angle rounds to f32 once, then f64, as the engine's.
    pub fn fill(&mut self, inverse_frequencies: &[f32], begin: usize, tokens: usize) {
        self.half = inverse_frequencies.len();
        for values in [&mut self.cos, &mut self.sin, &mut self.nis] {
            values.clear();
        }
        for position in begin..begin + tokens {
            for frequency in inverse_frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
                self.nis.push(-(sin as f32));
            }
        }
    }

    fn check(&self, shape: &PackedShape) -> Result<(), KernelError> {
        expect_len("turns", shape.tokens * self.half, self.cos.len())?;
        if self.half * 2 > shape.head_size {
            let (expected, actual) = (shape.head_size, self.half * 2);
            return Err(KernelError::ShapeMismatch {
                what: "rotated size",
                expected,
                actual,
            });
        }
        Ok(())
    }
}

/// Unpacks, turning keys back to position 0.
///
/// # Errors
/// [`KernelError::ShapeMismatch`].
pub fn rows_from_packed(
    isa: Isa,
    shape: &PackedShape,
    turns: &KeyTurns,
    packed: &[u8],
    rows: &mut [f32],
) -> Result<(), KernelError> {
    turns.check(shape)?;
    expect_len("packed", shape.byte_len(), packed.len())?;
    expect_len("rows", shape.width() * shape.tokens, rows.len())?;
    for (head, from) in packed.chunks_exact(shape.head_bytes()).enumerate() {
        isa.run(Unpack {
            shape,
            turns,
            head,
            from,
            rows,
        });
    }
    Ok(())
}

/// Packs, turning keys to their positions and rounding to the pool's type.
///
/// # Errors
/// [`KernelError::ShapeMismatch`].
pub fn packed_from_rows(
    isa: Isa,
    shape: &PackedShape,
    turns: &KeyTurns,
    rows: &[f32],
    packed: &mut [u8],
) -> Result<(), KernelError> {
    turns.check(shape)?;
    expect_len("packed", shape.byte_len(), packed.len())?;
    expect_len("rows", shape.width() * shape.tokens, rows.len())?;
    for (head, to) in packed.chunks_exact_mut(shape.head_bytes()).enumerate() {
        isa.run(Pack {
            shape,
            turns,
            head,
            rows,
            to,
        });
    }
    Ok(())
}

fn is_key(shape: &PackedShape, head: usize) -> bool {
    (head / shape.kv_heads).is_multiple_of(2)
}

struct Unpack<'a> {
    shape: &'a PackedShape,
    turns: &'a KeyTurns,
    head: usize,
    from: &'a [u8],
    rows: &'a mut [f32],
}

impl Kernel for Unpack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (size, width) = (self.shape.head_size, self.shape.width());
        let (dtype, half) = (self.shape.dtype, self.turns.half);
        for (token, from) in self.from.chunks_exact(size * dtype.byte_size()).enumerate() {
            let to = &mut self.rows[token * width + self.head * size..][..size];
            Widen {
                dtype,
                from,
                to: &mut *to,
            }
            .run(s);
            if is_key(self.shape, self.head) && half > 0 {
                let (cos, sin) = (
                    &self.turns.cos[token * half..][..half],
                    &self.turns.nis[token * half..][..half],
                );
                Rotate {
                    head_size: size,
                    cos,
                    sin,
                    heads: to,
                }
                .run(s);
            }
        }
    }
}

struct Pack<'a> {
    shape: &'a PackedShape,
    turns: &'a KeyTurns,
    head: usize,
    rows: &'a [f32],
    to: &'a mut [u8],
}

impl Kernel for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (size, width) = (self.shape.head_size, self.shape.width());
        let (dtype, half) = (self.shape.dtype, self.turns.half);
        let mut key = vec![0.0; size];
        for (token, to) in self.to.chunks_exact_mut(size * dtype.byte_size()).enumerate() {
            let from = &self.rows[token * width + self.head * size..][..size];
            if !is_key(self.shape, self.head) || half == 0 {
                Narrow { dtype, from, to }.run(s);
                continue;
            }
            key.copy_from_slice(from);
            let (cos, sin) = (
                &self.turns.cos[token * half..][..half],
                &self.turns.sin[token * half..][..half],
            );
            Rotate {
                head_size: size,
                cos,
                sin,
                heads: &mut key,
            }
            .run(s);
            Narrow { dtype, from: &key, to }.run(s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::Noise;

    #[test]
    fn packing_undoes_unpacking_and_keys_stand_at_position_zero_between() {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::F16] {
            let shape = PackedShape {
                dtype,
                layers: 2,
                kv_heads: 3,
                head_size: 24,
                tokens: 5,
            };
            let mut noise = Noise::new(5);
            let rows = noise.units(shape.width() * shape.tokens);
            let mut turns = KeyTurns::default();
            turns.fill(&[1.0, 0.1, 0.01, 0.003], 700, shape.tokens);
            let mut first: Option<Vec<u8>> = None;
            for isa in Isa::available() {
                let (mut packed, mut back) = (vec![0; shape.byte_len()], vec![0.0; rows.len()]);
                packed_from_rows(isa, &shape, &turns, &rows, &mut packed).unwrap();
                rows_from_packed(isa, &shape, &turns, &packed, &mut back).unwrap();
                let tolerance = if dtype == KvDtype::F32 { 1e-6 } else { 8e-3 };
                assert!(rows.iter().zip(&back).all(|(x, y)| (x - y).abs() < tolerance));
                assert_eq!(first.get_or_insert_with(|| packed.clone()), &packed);
            }
            // Layer 1's values, head 2, token 3, are where the format says, unrotated.
            let packed = first.unwrap();
            let at = (((2 + 1) * 3 + 2) * 5 + 3) * 24 * dtype.byte_size();
            let mut widened = vec![0.0; 24];
            let from = &packed[at..at + 24 * dtype.byte_size()];
            Isa::detect().run(Widen {
                dtype,
                from,
                to: &mut widened,
            });
            let expected = &rows[3 * shape.width() + 11 * 24..][..24];
            assert!(widened.iter().zip(expected).all(|(x, y)| (x - y).abs() < 8e-3));
        }
    }
}
