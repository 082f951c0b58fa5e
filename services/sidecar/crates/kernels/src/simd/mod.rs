//! Sixteen lanes, three implementations, the same bits.
//!
//! A kernel is written once against [`Simd`]. Lanes never mix except in the two reductions, whose tree is part of the contract, and
//! `fma` rounds once everywhere; so AVX-512, AVX2 and the portable code agree bit for bit. A value of an implementation is proof that
//! the processor has its instructions: that is what makes the methods safe.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod element;
pub(crate) mod portable;

/// Lanes of a vector, and rows of a weight panel.
pub const LANES: usize = 16;
/// Weights and activations share a scale over this many consecutive columns.
pub const BLOCK: usize = 32;

/// What unpacked weights are, for [`Simd::dot_rows`]; a constant where it is called.
#[derive(Clone, Copy)]
pub(crate) enum Numbers {
    /// As of [`Simd::dot_u4`]; `starts` are its starts.
    U4,
    /// As of [`Simd::dot_u6`]; `starts` are its starts.
    U6,
    /// As of [`Simd::dot_s8`]; `starts` are its sums.
    S8,
}

/// Operations on 16 lanes. `F`: f32 lanes. `I`: i32 lanes. `B`: for each lane four consecutive quantised weights.
pub(crate) trait Simd: Copy {
    type F: Copy;
    type I: Copy;
    type B: Copy;
    /// Whether 32 vector registers of 16 lanes exist: chooses tile sizes, never results.
    const WIDE: bool;

    /// A hint that these bytes will be read soon.
    fn prefetch(self, bytes: &[u8]);
    /// The same for as many bytes `ahead` of these, which may lie anywhere: a hint reads nothing.
    fn prefetch_ahead(self, bytes: &[u8], ahead: usize);
    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, value: Self::F, to: &mut [f32; LANES]);
    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F;
    /// Rounds to nearest, ties to even.
    fn store_f16(self, value: Self::F, to: &mut [u16; LANES]);
    /// Rounds to nearest, ties to even; NaN stays NaN.
    fn store_bf16(self, value: Self::F, to: &mut [u16; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger; `b` when either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` when either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `2^n`, where each lane holds `n + 1.5 · 2^23` and `-126 <= n <= 127`.
    fn pow2_of_biased(self, biased: Self::F) -> Self::F;
    /// Lanes below `count` from `value`, the others from `other`.
    fn select_first(self, count: usize, value: Self::F, other: Self::F) -> Self::F;
    /// Sum over lanes: `i` with `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    fn reduce_sum(self, value: Self::F) -> f32;
    /// Largest lane.
    fn reduce_max(self, value: Self::F) -> f32;
    /// Row `i`, lane `j` becomes row `j`, lane `i`.
    fn transpose(self, rows: &mut [Self::F; LANES]);

    fn f32_from_i32(self, value: Self::I) -> Self::F;
    /// `sum + Σ w · a` per lane over four columns, `a` as four bytes; exact for `w` in 0..=15. How fast it runs is the bound of `dot_*`.
    fn dot_quad(self, sum: Self::I, w: Self::B, a: i32) -> Self::I;
    /// Sixteen pairs of bf16, the first of each in the low half of its lane.
    fn load_pairs(self, from: &[u16; 2 * LANES]) -> Self::I;
    /// The low and the high halves of 16 words, each a bf16.
    fn widen_pairs(self, pairs: Self::F) -> (Self::F, Self::F);
    /// `acc + w · x` per lane over a pair of bf16 each, the second first, rounded after each: `fma(w0, x0, fma(w1, x1, acc))`. Numbers below
    /// 2^-126 may count as zero.
    fn dot_bf16(self, acc: Self::F, w: Self::I, x: u32) -> Self::F;
    /// Zero in every lane.
    fn zero_i32(self) -> Self::I;
    /// Eight vectors of unsigned 4-bit weights from their packed form: the low nibbles of 64-byte line `i` are columns `4i..4i + 4` of
    /// the block, the high ones columns `16 + 4i..16 + 4i + 4`.
    fn unpack_u4(self, from: &[u8; 256]) -> [Self::B; 8];
    /// `start + Σ w · a` per lane over one block, exact. `w` in 0..=15, `a` in -127..=127.
    fn dot_u4(self, w: &[Self::B; 8], a: &[i8; BLOCK], start: i32) -> Self::I;
    /// Sixteen unsigned bytes.
    fn load_u8(self, from: &[u8; LANES]) -> Self::F;
    /// Sixteen whole numbers in 0..=255 as bytes.
    fn store_u8(self, value: Self::F, to: &mut [u8; LANES]);
    /// Sixteen signed bytes.
    fn load_i8(self, from: &[u8; LANES]) -> Self::F;
    /// Eight vectors of unsigned 5-bit weights: the packed form of 4 bits, then a line whose bit `g` is the fifth bit for vector `g`.
    fn unpack_u5(self, from: &[u8; 320]) -> [Self::B; 8];
    /// Eight vectors of unsigned 6-bit weights: the packed form of 4 bits, then two lines whose bit pair `g % 4` tops vector `g`, the first
    /// line for vectors 0 to 3.
    fn unpack_u6(self, from: &[u8; 384]) -> [Self::B; 8];
    /// As [`Simd::dot_u4`] for `w` in 0..=63.
    fn dot_u6(self, w: &[Self::B; 8], a: &[i8; BLOCK], start: i32) -> Self::I;
    /// The same for the first and the second 16 columns apart.
    fn dot_u6_halves(self, w: &[Self::B; 8], a: &[i8; BLOCK], starts: [i32; 2]) -> [Self::I; 2];
    /// The dot products of several rows with one block.
    #[inline(always)]
    fn dot_rows<const N: usize>(
        self,
        numbers: Numbers,
        w: &[Self::B; 8],
        a: [&[i8; BLOCK]; N],
        starts: [i32; N],
    ) -> [Self::I; N] {
        let mut sums = [self.zero_i32(); N];
        for i in 0..N {
            sums[i] = match numbers {
                Numbers::U4 => self.dot_u4(w, a[i], starts[i]),
                Numbers::U6 => self.dot_u6(w, a[i], starts[i]),
                Numbers::S8 => self.dot_s8(w, a[i], starts[i]),
            };
        }
        sums
    }
    /// Eight vectors of signed 8-bit weights, stored plus 128.
    fn unpack_s8(self, from: &[u8; 512]) -> [Self::B; 8];
    /// `Σ w · a` per lane over one block, exact; `a_sum` is `Σ a`. `a` in -127..=127.
    fn dot_s8(self, w: &[Self::B; 8], a: &[i8; BLOCK], a_sum: i32) -> Self::I;
}

/// The four low bits of a packed block of five or six.
#[inline(always)]
pub(crate) fn nibbles_of(from: &[u8]) -> &[u8; 256] {
    from.first_chunk().unwrap_or(&[0; 256])
}

/// Four activations as the word that multiplies four consecutive weights of every lane.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn quad(a: &[i8; BLOCK], group: usize) -> i32 {
    let at = group * 4;
    i32::from_le_bytes([a[at] as u8, a[at + 1] as u8, a[at + 2] as u8, a[at + 3] as u8])
}

/// Repeats a block for `$i` in `0..$n`, `$n <= 16` known at compile time. The optimiser leaves a plain loop over a long body rolled, and
/// then keeps the accumulators that it indexes in memory; written out, they live in registers.
macro_rules! unroll {
    ($i:ident < $n:expr, $body:block) => {
        $crate::simd::unroll!(@ $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $i:ident, $n:expr, $body:block, $($index:literal)*) => {
        $(if $index < $n {
            let $i: usize = $index;
            $body
        })*
    };
}
pub(crate) use unroll;

#[cfg(test)]
pub(crate) mod tests;
