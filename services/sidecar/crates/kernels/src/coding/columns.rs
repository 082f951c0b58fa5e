//! KV as it is packed for the wire, one head after the other, and columns of numbers in which a channel's tokens stand side by side.
//!
//! ```text
//! packed   [layer][K, V][kv_head][token][head_size] in the pool's type, keys rotated
//! columns  [layer][K, V][kv_head][head_size][stride] of f32, keys as they were before rotation; the stride is `tokens` rounded up to 16
//! ```

use crate::aligned::AlignedF32;
use crate::error::{KernelError, expect_len};
use crate::isa::{Isa, Kernel};
use crate::kv_pool::KvDtype;
use crate::simd::{LANES, Simd};

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

    /// Numbers from one column to the next.
    pub fn stride(&self) -> usize {
        column_stride(self.tokens)
    }

    fn head_bytes(&self) -> usize {
        self.tokens * self.head_size * self.dtype.byte_size()
    }
}

/// Numbers or symbols from one column of `tokens` to the next: whole vectors, of which the rest is unspecified.
pub fn column_stride(tokens: usize) -> usize {
    tokens.next_multiple_of(LANES)
}

/// Cosines and sines of the keys of consecutive tokens, as the engine rotated them; see [`crate::RopeTable`].
#[derive(Default)]
pub struct KeyTurns {
    half: usize,
    begin: usize,
    tokens: usize,
    /// `[frequencies][stride]`.
    cos: AlignedF32,
    sin: AlignedF32,
}

impl KeyTurns {
    /// Turns of `tokens` tokens from position `begin`: the angle rounds to f32 once, then f64, as the engine's.
    pub fn fill(&mut self, inverse_frequencies: &[f32], begin: usize, tokens: usize) {
        let stride = column_stride(tokens);
        (self.half, self.begin, self.tokens) = (inverse_frequencies.len(), begin, tokens);
        self.cos.resize(self.half * stride);
        self.sin.resize(self.half * stride);
        for (index, frequency) in inverse_frequencies.iter().enumerate() {
            for token in 0..tokens {
                let (sin, cos) = f64::from((begin + token) as f32 * frequency).sin_cos();
                self.cos[index * stride + token] = cos as f32;
                self.sin[index * stride + token] = sin as f32;
            }
        }
    }

    /// Cosines and sines, each `[frequencies][stride]`.
    pub fn values(&self) -> [&[f32]; 2] {
        [&self.cos, &self.sin]
    }

    /// Whether it was filled for these tokens, with as many frequencies.
    pub fn is_of(&self, frequencies: usize, begin: usize, tokens: usize) -> bool {
        (self.half, self.begin, self.tokens) == (frequencies, begin, tokens)
    }

    fn check(&self, shape: &PackedShape) -> Result<(), KernelError> {
        expect_len("turns", self.half * shape.stride(), self.cos.len())?;
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

    /// Cosines and sines of a frequency for the 16 tokens from `token`.
    #[inline(always)]
    fn at<S: Simd>(&self, s: S, frequency: usize, token: usize) -> (S::F, S::F) {
        let at = frequency * column_stride(self.tokens) + token;
        (load(s, &self.cos[at..]), load(s, &self.sin[at..]))
    }
}

/// Unpacks, turning keys back to position 0. Returns whether all numbers are finite.
///
/// # Errors
/// [`KernelError::ShapeMismatch`].
pub fn columns_from_packed(
    isa: Isa,
    shape: &PackedShape,
    turns: &KeyTurns,
    packed: &[u8],
    columns: &mut [f32],
) -> Result<bool, KernelError> {
    turns.check(shape)?;
    expect_len("packed", shape.byte_len(), packed.len())?;
    expect_len("columns", shape.width() * shape.stride(), columns.len())?;
    let mut tile = Tile::new(shape);
    let heads = packed.chunks_exact(shape.head_bytes());
    let mut finite = true;
    for (head, (from, to)) in heads
        .zip(columns.chunks_exact_mut(shape.head_size * shape.stride()))
        .enumerate()
    {
        finite &= isa.run(Unpack {
            shape,
            turns: is_key(shape, head).then_some(turns),
            tile: &mut tile.0,
            from,
            to,
        });
    }
    Ok(finite)
}

/// Packs, turning keys to their positions and rounding to the pool's type.
///
/// # Errors
/// [`KernelError::ShapeMismatch`].
pub fn packed_from_columns(
    isa: Isa,
    shape: &PackedShape,
    turns: &KeyTurns,
    columns: &[f32],
    packed: &mut [u8],
) -> Result<(), KernelError> {
    turns.check(shape)?;
    expect_len("packed", shape.byte_len(), packed.len())?;
    expect_len("columns", shape.width() * shape.stride(), columns.len())?;
    let mut tile = Tile::new(shape);
    let heads = packed.chunks_exact_mut(shape.head_bytes());
    for (head, (to, from)) in heads
        .zip(columns.chunks_exact(shape.head_size * shape.stride()))
        .enumerate()
    {
        isa.run(Pack {
            shape,
            turns: is_key(shape, head).then_some(turns),
            tile: &mut tile.0,
            from,
            to,
        });
    }
    Ok(())
}

fn is_key(shape: &PackedShape, head: usize) -> bool {
    (head / shape.kv_heads).is_multiple_of(2)
}

/// Sixteen tokens of one head, `[head_size rounded up to 16][16]`: near, and every line its own.
struct Tile(AlignedF32);

impl Tile {
    fn new(shape: &PackedShape) -> Self {
        let mut all = AlignedF32::default();
        all.resize(shape.head_size.next_multiple_of(LANES) * LANES);
        Self(all)
    }
}

#[inline(always)]
pub(super) fn load<S: Simd>(s: S, from: &[f32]) -> S::F {
    match from.first_chunk() {
        Some(from) => s.load(from),
        None => s.splat(0.0),
    }
}

#[inline(always)]
pub(super) fn store<S: Simd>(s: S, value: S::F, to: &mut [f32]) {
    if let Some(to) = to.first_chunk_mut() {
        s.store(value, to);
    }
}

/// Sixteen elements from their bytes; what is missing is 0.
#[inline(always)]
fn widen<S: Simd>(s: S, dtype: KvDtype, from: &[u8]) -> S::F {
    let mut all = [0; 4 * LANES];
    let from = match from.split_at_checked(dtype.byte_size() * LANES) {
        Some((whole, _)) => whole,
        None => {
            all[..from.len()].copy_from_slice(from);
            &all[..dtype.byte_size() * LANES]
        }
    };
    if dtype == KvDtype::F32 {
        let mut values = [0.0; LANES];
        for (value, bytes) in values.iter_mut().zip(from.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        return s.load(&values);
    }
    let mut bits = [0; LANES];
    for (bits, bytes) in bits.iter_mut().zip(from.as_chunks().0) {
        *bits = u16::from_le_bytes(*bytes);
    }
    match dtype {
        KvDtype::F16 => s.load_f16(&bits),
        _ => s.load_bf16(&bits),
    }
}

/// Sixteen elements, or as many as there is room for.
#[inline(always)]
fn narrow<S: Simd>(s: S, dtype: KvDtype, value: S::F, to: &mut [u8]) {
    if dtype == KvDtype::F32 {
        let mut values = [0.0; LANES];
        s.store(value, &mut values);
        for (value, to) in values.iter().zip(to.as_chunks_mut::<4>().0) {
            *to = value.to_le_bytes();
        }
        return;
    }
    let mut bits = [0; LANES];
    match dtype {
        KvDtype::F16 => s.store_f16(value, &mut bits),
        _ => s.store_bf16(value, &mut bits),
    }
    match to.first_chunk_mut::<{ 2 * LANES }>() {
        Some(to) => {
            for (bits, to) in bits.iter().zip(to.as_chunks_mut::<2>().0) {
                *to = bits.to_le_bytes();
            }
        }
        None => {
            for (bits, to) in bits.iter().zip(to.as_chunks_mut::<2>().0) {
                *to = bits.to_le_bytes();
            }
        }
    }
}

struct Unpack<'a> {
    shape: &'a PackedShape,
    /// For keys.
    turns: Option<&'a KeyTurns>,
    tile: &'a mut [f32],
    from: &'a [u8],
    to: &'a mut [f32],
}

impl Kernel for Unpack<'_> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        match self.shape.dtype {
            KvDtype::F32 => self.run_type(s, KvDtype::F32),
            KvDtype::F16 => self.run_type(s, KvDtype::F16),
            KvDtype::Bf16 => self.run_type(s, KvDtype::Bf16),
        }
    }
}

impl Unpack<'_> {
    #[inline(always)]
    fn run_type<S: Simd>(self, s: S, dtype: KvDtype) -> bool {
        let (size, stride) = (self.shape.head_size, self.shape.stride());
        let row_bytes = size * dtype.byte_size();
        // Nothing but a NaN differs from itself, and what is not finite less itself is one.
        let mut doubt = s.splat(0.0);
        for (index, rows) in self.from.chunks(row_bytes * LANES).enumerate() {
            let token = index * LANES;
            for dim in (0..size).step_by(LANES) {
                let mut square = [s.splat(0.0); LANES];
                for (row, value) in rows.chunks_exact(row_bytes).zip(&mut square) {
                    *value = widen(s, dtype, &row[dim * dtype.byte_size()..]);
                }
                s.transpose(&mut square);
                for i in 0..LANES {
                    doubt = s.add(doubt, s.sub(square[i], square[i]));
                    store(s, square[i], &mut self.tile[(dim + i) * LANES..]);
                }
            }
            let half = self.turns.map_or(0, |turns| turns.half);
            if let Some(turns) = self.turns {
                for i in 0..half {
                    let (a, b) = (
                        load(s, &self.tile[i * LANES..]),
                        load(s, &self.tile[(i + half) * LANES..]),
                    );
                    let (cos, sin) = turns.at(s, i, token);
                    store(s, s.fma(a, cos, s.mul(b, sin)), &mut self.to[i * stride + token..]);
                    let turned = s.fma(b, cos, s.sub(s.splat(0.0), s.mul(a, sin)));
                    store(s, turned, &mut self.to[(i + half) * stride + token..]);
                }
            }
            for dim in 2 * half..size {
                let value = load(s, &self.tile[dim * LANES..]);
                store(s, value, &mut self.to[dim * stride + token..]);
            }
        }
        s.reduce_sum(doubt) == 0.0
    }
}

struct Pack<'a> {
    shape: &'a PackedShape,
    /// For keys.
    turns: Option<&'a KeyTurns>,
    tile: &'a mut [f32],
    from: &'a [f32],
    to: &'a mut [u8],
}

impl Kernel for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.shape.dtype {
            KvDtype::F32 => self.run_type(s, KvDtype::F32),
            KvDtype::F16 => self.run_type(s, KvDtype::F16),
            KvDtype::Bf16 => self.run_type(s, KvDtype::Bf16),
        }
    }
}

impl Pack<'_> {
    #[inline(always)]
    fn run_type<S: Simd>(self, s: S, dtype: KvDtype) {
        let (size, stride) = (self.shape.head_size, self.shape.stride());
        let row_bytes = size * dtype.byte_size();
        for (index, rows) in self.to.chunks_mut(row_bytes * LANES).enumerate() {
            let token = index * LANES;
            let half = self.turns.map_or(0, |turns| turns.half);
            if let Some(turns) = self.turns {
                for i in 0..half {
                    let a = load(s, &self.from[i * stride + token..]);
                    let b = load(s, &self.from[(i + half) * stride + token..]);
                    let (cos, sin) = turns.at(s, i, token);
                    let turned = s.fma(a, cos, s.sub(s.splat(0.0), s.mul(b, sin)));
                    store(s, turned, &mut self.tile[i * LANES..]);
                    store(s, s.fma(b, cos, s.mul(a, sin)), &mut self.tile[(i + half) * LANES..]);
                }
            }
            for dim in 2 * half..size {
                store(
                    s,
                    load(s, &self.from[dim * stride + token..]),
                    &mut self.tile[dim * LANES..],
                );
            }
            for dim in (0..size).step_by(LANES) {
                let mut square = [s.splat(0.0); LANES];
                for i in 0..LANES {
                    square[i] = load(s, &self.tile[(dim + i) * LANES..]);
                }
                s.transpose(&mut square);
                for (row, value) in rows.chunks_exact_mut(row_bytes).zip(square) {
                    narrow(s, dtype, value, &mut row[dim * dtype.byte_size()..]);
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
    fn packing_undoes_unpacking_and_keys_stand_at_position_zero_between() {
        for (dtype, tokens, head_size) in [
            (KvDtype::F32, 5, 24),
            (KvDtype::Bf16, 5, 24),
            (KvDtype::F16, 37, 24),
            (KvDtype::Bf16, 32, 16),
        ] {
            let shape = PackedShape {
                dtype,
                layers: 2,
                kv_heads: 3,
                head_size,
                tokens,
            };
            let (mut noise, stride) = (Noise::new(5), shape.stride());
            let columns = noise.units(shape.width() * stride);
            let mut turns = KeyTurns::default();
            turns.fill(&[1.0, 0.1, 0.01, 0.003], 700, tokens);
            assert!(turns.is_of(4, 700, tokens) && !turns.is_of(4, 701, tokens));
            let mut first: Option<(Vec<u8>, Vec<f32>)> = None;
            for isa in Isa::available() {
                let (mut packed, mut back) = (vec![0; shape.byte_len()], vec![0.0; columns.len()]);
                packed_from_columns(isa, &shape, &turns, &columns, &mut packed).unwrap();
                assert!(columns_from_packed(isa, &shape, &turns, &packed, &mut back).unwrap());
                let tolerance = if dtype == KvDtype::F32 { 1e-6 } else { 8e-3 };
                for (x, y) in columns.chunks_exact(stride).zip(back.chunks_exact(stride)) {
                    assert!(x[..tokens].iter().zip(y).all(|(x, y)| (x - y).abs() < tolerance));
                }
                let first = first.get_or_insert_with(|| (packed.clone(), back.clone()));
                assert_eq!((&first.0, &first.1), (&packed, &back));
            }
            // Layer 1's values, head 2, token 3, are where the format says, unrotated.
            let packed = first.unwrap().0;
            let at = (((2 + 1) * 3 + 2) * tokens + 3) * head_size * dtype.byte_size();
            for dim in 0..head_size {
                let bytes = &packed[at + dim * dtype.byte_size()..][..dtype.byte_size()];
                let value = match dtype {
                    KvDtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
                    KvDtype::F16 => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
                    KvDtype::Bf16 => half::bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
                };
                assert!((value - columns[(11 * head_size + dim) * stride + 3]).abs() < 8e-3);
            }
            // One number that is not finite is noticed wherever it lies.
            let mut back = vec![0.0; columns.len()];
            for at in [0, packed.len() / 2, packed.len() - dtype.byte_size()] {
                let mut packed = packed.clone();
                packed[at..at + dtype.byte_size()].fill(0xff);
                assert!(!columns_from_packed(Isa::detect(), &shape, &turns, &packed, &mut back).unwrap());
            }
        }
    }
}
