//! The block formats as the multiplication sees them: unsigned numbers of a block, and the vectors that scale it.

use super::blocks::{MINIMA_BYTES, SIGNED_BYTES, SUPER_BLOCKS};
use super::rows::BlockScale;
use crate::aligned::as_u16;
use crate::simd::{BLOCK, LANES, Numbers, Simd, unroll};

/// Vectors that scale a block; a format uses the first ones.
pub(super) type Factors<S> = [<S as Simd>::F; 3];

/// One block of 32 columns in 16 rows of weights, and its product with 32 activations.
pub(super) trait BlockFormat {
    /// Bytes of a block's weights in a panel.
    const BYTES: usize;
    /// The weights of a block from its [`Self::BYTES`] bytes.
    fn weights<S: Simd>(s: S, bytes: &[u8]) -> [S::B; 8];
    /// The factors of block `block` of a panel.
    fn factors<S: Simd>(s: S, scales: &[u8], block: usize) -> Factors<S>;
    /// `acc + w · a` for each of some rows.
    fn multiply<S: Simd, const N: usize>(
        s: S,
        w: &[S::B; 8],
        factors: &Factors<S>,
        a: [&[i8; BLOCK]; N],
        scales: [&BlockScale; N],
        acc: [S::F; N],
    ) -> [S::F; N];
}

/// A fixed number of bytes from `at`.
#[inline(always)]
fn bytes<const N: usize>(from: &[u8], at: usize) -> &[u8; N] {
    from[at..].first_chunk().unwrap_or(&[0; N])
}

#[inline(always)]
fn halves<S: Simd>(s: S, scales: &[u8], at: usize) -> S::F {
    let line: &[u8; 2 * LANES] = bytes(scales, at);
    match as_u16(line).first_chunk() {
        Some(halves) => s.load_f16(halves),
        None => s.splat(0.0),
    }
}

/// `acc + dot · (d · a)`, and `+ m · Σa` where there are minima; the dot products start at `offset` times the activations' sums.
#[inline(always)]
fn scaled<S: Simd, const N: usize, const MINIMA: bool>(
    s: S,
    (numbers, offset): (Numbers, i32),
    (w, factors): (&[S::B; 8], &Factors<S>),
    a: [&[i8; BLOCK]; N],
    scales: [&BlockScale; N],
    mut acc: [S::F; N],
) -> [S::F; N] {
    let mut starts = [0; N];
    for i in 0..N {
        starts[i] = offset * scales[i].sum;
    }
    let dots = s.dot_rows(numbers, w, a, starts);
    unroll!(i < N, {
        let scale = s.mul(factors[0], s.splat(scales[i].scale));
        acc[i] = s.fma(s.f32_from_i32(dots[i]), scale, acc[i]);
        if MINIMA {
            acc[i] = s.fma(factors[1], s.splat(scales[i].scaled_sum), acc[i]);
        }
    });
    acc
}

/// The `multiply` of a format that [`scaled`] covers.
macro_rules! multiply_scaled {
    ($numbers:ident, $offset:literal, $minima:literal) => {
        #[inline(always)]
        fn multiply<S: Simd, const N: usize>(
            s: S,
            w: &[S::B; 8],
            factors: &Factors<S>,
            a: [&[i8; BLOCK]; N],
            scales: [&BlockScale; N],
            acc: [S::F; N],
        ) -> [S::F; N] {
            scaled::<S, N, $minima>(s, (Numbers::$numbers, $offset), (w, factors), a, scales, acc)
        }
    };
}

pub(super) struct Q8_0;

impl BlockFormat for Q8_0 {
    const BYTES: usize = 512;
    #[inline(always)]
    fn weights<S: Simd>(s: S, from: &[u8]) -> [S::B; 8] {
        s.unpack_s8(bytes(from, 0))
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, scales: &[u8], block: usize) -> Factors<S> {
        [halves(s, scales, block * 32), s.splat(0.0), s.splat(0.0)]
    }
    multiply_scaled!(S8, 1, false);
}

pub(super) struct Q4_0;

impl BlockFormat for Q4_0 {
    const BYTES: usize = 256;
    #[inline(always)]
    fn weights<S: Simd>(s: S, from: &[u8]) -> [S::B; 8] {
        s.unpack_u4(bytes(from, 0))
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, scales: &[u8], block: usize) -> Factors<S> {
        Q8_0::factors(s, scales, block)
    }
    multiply_scaled!(U4, -8, false);
}

pub(super) struct Q5_0;

impl BlockFormat for Q5_0 {
    const BYTES: usize = 320;
    #[inline(always)]
    fn weights<S: Simd>(s: S, from: &[u8]) -> [S::B; 8] {
        s.unpack_u5(bytes(from, 0))
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, scales: &[u8], block: usize) -> Factors<S> {
        Q8_0::factors(s, scales, block)
    }
    multiply_scaled!(U6, -16, false);
}

pub(super) struct Q4_1;

impl BlockFormat for Q4_1 {
    const BYTES: usize = 256;
    #[inline(always)]
    fn weights<S: Simd>(s: S, from: &[u8]) -> [S::B; 8] {
        s.unpack_u4(bytes(from, 0))
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, scales: &[u8], block: usize) -> Factors<S> {
        let (d, m) = (halves(s, scales, block * 64), halves(s, scales, block * 64 + 32));
        [d, m, s.splat(0.0)]
    }
    multiply_scaled!(U4, 0, true);
}

/// Scale and minus the minimum of a block of Q4_K and Q5_K.
#[inline(always)]
fn factors_with_minima<S: Simd>(s: S, scales: &[u8], block: usize) -> Factors<S> {
    let scales = &scales[block / SUPER_BLOCKS * MINIMA_BYTES..][..MINIMA_BYTES];
    let at = 64 + block % SUPER_BLOCKS * LANES;
    let d = s.mul(halves(s, scales, 0), s.load_u8(bytes(scales, at)));
    let m = s.mul(halves(s, scales, 32), s.load_u8(bytes(scales, at + 128)));
    [d, s.mul(m, s.splat(-1.0)), s.splat(0.0)]
}

pub(super) struct Q4K;

impl BlockFormat for Q4K {
    const BYTES: usize = 256;
    #[inline(always)]
    fn weights<S: Simd>(s: S, from: &[u8]) -> [S::B; 8] {
        s.unpack_u4(bytes(from, 0))
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, scales: &[u8], block: usize) -> Factors<S> {
        factors_with_minima(s, scales, block)
    }
    multiply_scaled!(U4, 0, true);
}

pub(super) struct Q5K;

impl BlockFormat for Q5K {
    const BYTES: usize = 320;
    #[inline(always)]
    fn weights<S: Simd>(s: S, from: &[u8]) -> [S::B; 8] {
        s.unpack_u5(bytes(from, 0))
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, scales: &[u8], block: usize) -> Factors<S> {
        factors_with_minima(s, scales, block)
    }
    multiply_scaled!(U6, 0, true);
}

pub(super) struct Q6K;

impl BlockFormat for Q6K {
    const BYTES: usize = 384;
    #[inline(always)]
    fn weights<S: Simd>(s: S, from: &[u8]) -> [S::B; 8] {
        s.unpack_u6(bytes(from, 0))
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, scales: &[u8], block: usize) -> Factors<S> {
        let scales = &scales[block / SUPER_BLOCKS * SIGNED_BYTES..][..SIGNED_BYTES];
        let at = 32 + 2 * (block % SUPER_BLOCKS) * LANES;
        let (first, second) = (s.load_i8(bytes(scales, at)), s.load_i8(bytes(scales, at + LANES)));
        [halves(s, scales, 0), first, second]
    }
    #[inline(always)]
    fn multiply<S: Simd, const N: usize>(
        s: S,
        w: &[S::B; 8],
        f: &Factors<S>,
        a: [&[i8; BLOCK]; N],
        scales: [&BlockScale; N],
        mut acc: [S::F; N],
    ) -> [S::F; N] {
        unroll!(i < N, {
            let sums = scales[i];
            let starts = [-32 * sums.first_sum, -32 * (sums.sum - sums.first_sum)];
            let dots = s.dot_u6_halves(w, a[i], starts).map(|dot| s.f32_from_i32(dot));
            let dot = s.fma(dots[1], f[2], s.mul(dots[0], f[1]));
            acc[i] = s.fma(dot, s.mul(f[0], s.splat(sums.scale)), acc[i]);
        });
        acc
    }
}
