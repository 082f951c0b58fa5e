//! AVX2 with FMA and F16C: two registers hold the 16 lanes.

use super::avx512::sum8;
use super::{BLOCK, LANES, Simd, nibbles_of, quad};
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn is_available() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    }

    /// # Safety
    /// [`Avx2::is_available`] must have answered yes.
    #[inline(always)]
    pub(crate) unsafe fn assume_available() -> Self {
        Self(())
    }
}

type F = [__m256; 2];

macro_rules! each {
    ($f:ident, $($arg:expr),+) => {
        // SAFETY: the `self` in scope proves that the instructions exist; no memory is touched.
        unsafe { [$f($($arg[0]),+), $f($($arg[1]),+)] }
    };
}

// SAFETY of every unsafe block below: `self` proves that the instructions exist; loads and stores go through references to arrays of
// exactly the size accessed, with unaligned forms.
impl Simd for Avx2 {
    type F = F;
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        for line in bytes.chunks(64) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
    #[inline(always)]
    fn prefetch_ahead(self, bytes: &[u8], ahead: usize) {
        for line in bytes.chunks(64) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(ahead).cast()) };
        }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> F {
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn store(self, value: F, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), value[1]);
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(8).cast())),
            ]
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().add(8).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }
    #[inline(always)]
    fn store_f16(self, value: F, to: &mut [u16; LANES]) {
        unsafe {
            let low = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(value[0]);
            let high = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(value[1]);
            _mm_storeu_si128(to.as_mut_ptr().cast(), low);
            _mm_storeu_si128(to.as_mut_ptr().add(8).cast(), high);
        }
    }
    #[inline(always)]
    fn store_bf16(self, value: F, to: &mut [u16; LANES]) {
        unsafe {
            let mut halves = [_mm256_setzero_si256(); 2];
            for i in 0..2 {
                let bits = _mm256_castps_si256(value[i]);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value[i], value[i]));
                halves[i] = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            }
            let packed = _mm256_permute4x64_epi64::<0xd8>(_mm256_packus_epi32(halves[0], halves[1]));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), packed);
        }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        each!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        each!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn pow2_of_biased(self, biased: F) -> F {
        unsafe {
            let one = _mm256_castps_si256(_mm256_set1_ps(1.0));
            biased.map(|x| _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32::<23>(_mm256_castps_si256(x)), one)))
        }
    }
    #[inline(always)]
    fn select_first(self, count: usize, value: F, other: F) -> F {
        unsafe {
            let count = _mm256_set1_epi32(count.min(LANES) as i32);
            let low = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
            [
                _mm256_blendv_ps(other[0], value[0], _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(other[1], value[1], _mm256_castsi256_ps(high)),
            ]
        }
    }
    #[inline(always)]
    fn reduce_sum(self, value: F) -> f32 {
        unsafe { sum8(_mm256_add_ps(value[0], value[1])) }
    }
    #[inline(always)]
    fn reduce_max(self, value: F) -> f32 {
        unsafe {
            let v8 = _mm256_max_ps(value[0], value[1]);
            let v4 = _mm_max_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
            let v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_max_ss(v2, _mm_movehdup_ps(v2)))
        }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [F; LANES]) {
        let mut out = *rows;
        for (block_row, block_col) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut square = [rows[0][0]; 8];
            for i in 0..8 {
                square[i] = rows[block_row * 8 + i][block_col];
            }
            // SAFETY: `self` proves AVX2.
            let turned = unsafe { transpose8(square) };
            for i in 0..8 {
                out[block_col * 8 + i][block_row] = turned[i];
            }
        }
        *rows = out;
    }

    #[inline(always)]
    fn f32_from_i32(self, value: Self::I) -> F {
        each!(_mm256_cvtepi32_ps, value)
    }
    #[inline(always)]
    fn dot_quad(self, sum: Self::I, w: Self::B, a: i32) -> Self::I {
        unsafe {
            let (a, ones) = (_mm256_set1_epi32(a), _mm256_set1_epi16(1));
            let pairs = w.map(|w| _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), ones));
            [_mm256_add_epi32(sum[0], pairs[0]), _mm256_add_epi32(sum[1], pairs[1])]
        }
    }
    #[inline(always)]
    fn zero_i32(self) -> Self::I {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u16; 2 * LANES]) -> Self::I {
        unsafe {
            [
                _mm256_loadu_si256(from.as_ptr().cast()),
                _mm256_loadu_si256(from.as_ptr().add(16).cast()),
            ]
        }
    }
    #[inline(always)]
    fn widen_pairs(self, pairs: F) -> (F, F) {
        unsafe {
            let top = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let bits = pairs.map(|pairs| _mm256_castps_si256(pairs));
            (
                bits.map(|pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))),
                bits.map(|pairs| _mm256_castsi256_ps(_mm256_and_si256(pairs, top))),
            )
        }
    }
    #[inline(always)]
    fn dot_bf16(self, acc: F, w: Self::I, x: u32) -> F {
        unsafe {
            let (even, odd) = self.widen_pairs(w.map(|pairs| _mm256_castsi256_ps(pairs)));
            let acc = self.fma(odd, self.splat(f32::from_bits(x & 0xffff_0000)), acc);
            self.fma(even, self.splat(f32::from_bits(x << 16)), acc)
        }
    }
    #[inline(always)]
    fn unpack_u4(self, from: &[u8; 256]) -> [Self::B; 8] {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let mut out = [[mask; 2]; 8];
            for line in 0..4 {
                for half in 0..2 {
                    let bytes = _mm256_loadu_si256(from.as_ptr().add(line * 64 + half * 32).cast());
                    out[line][half] = _mm256_and_si256(bytes, mask);
                    out[line + 4][half] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
                }
            }
            out
        }
    }
    #[inline(always)]
    fn dot_u4(self, w: &[Self::B; 8], a: &[i8; BLOCK], start: i32) -> Self::I {
        unsafe {
            // A pair's products are at most 2 · 15 · 127 = 3,810; eight of them, 30,480, still fit 16 bits: nothing saturates.
            let mut sum = [_mm256_setzero_si256(); 2];
            for group in 0..8 {
                let a = _mm256_set1_epi32(quad(a, group));
                sum[0] = _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(w[group][0], a));
                sum[1] = _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(w[group][1], a));
            }
            let (ones, start) = (_mm256_set1_epi16(1), _mm256_set1_epi32(start));
            sum.map(|pairs| _mm256_add_epi32(start, _mm256_madd_epi16(pairs, ones)))
        }
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::F {
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            [bytes, _mm_srli_si128::<8>(bytes)].map(|bytes| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)))
        }
    }
    #[inline(always)]
    fn store_u8(self, value: Self::F, to: &mut [u8; LANES]) {
        unsafe {
            let [low, high] = value.map(|half| _mm256_cvttps_epi32(half));
            // Packs within 128-bit lanes; the permutation puts the halves in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> Self::F {
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            [bytes, _mm_srli_si128::<8>(bytes)].map(|bytes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)))
        }
    }
    #[inline(always)]
    fn unpack_u5(self, from: &[u8; 320]) -> [Self::B; 8] {
        let mut out = self.unpack_u4(nibbles_of(from));
        unsafe {
            let mask = _mm256_set1_epi8(16);
            for half in 0..2 {
                let bits = _mm256_loadu_si256(from.as_ptr().add(256 + half * 32).cast());
                // Shifts of 16-bit lanes: what crosses from one byte into the other is masked off.
                let shifted = [
                    _mm256_slli_epi16::<4>(bits),
                    _mm256_slli_epi16::<3>(bits),
                    _mm256_slli_epi16::<2>(bits),
                    _mm256_slli_epi16::<1>(bits),
                    bits,
                    _mm256_srli_epi16::<1>(bits),
                    _mm256_srli_epi16::<2>(bits),
                    _mm256_srli_epi16::<3>(bits),
                ];
                for group in 0..8 {
                    out[group][half] = _mm256_or_si256(out[group][half], _mm256_and_si256(shifted[group], mask));
                }
            }
        }
        out
    }
    #[inline(always)]
    fn unpack_u6(self, from: &[u8; 384]) -> [Self::B; 8] {
        let mut out = self.unpack_u4(nibbles_of(from));
        unsafe {
            let mask = _mm256_set1_epi8(0x30);
            for line in 0..2 {
                for half in 0..2 {
                    let pairs = _mm256_loadu_si256(from.as_ptr().add(256 + line * 64 + half * 32).cast());
                    let shifted = [
                        _mm256_slli_epi16::<4>(pairs),
                        _mm256_slli_epi16::<2>(pairs),
                        pairs,
                        _mm256_srli_epi16::<2>(pairs),
                    ];
                    for part in 0..4 {
                        let to = &mut out[line * 4 + part][half];
                        *to = _mm256_or_si256(*to, _mm256_and_si256(shifted[part], mask));
                    }
                }
            }
        }
        out
    }
    #[inline(always)]
    fn dot_u6(self, w: &[Self::B; 8], a: &[i8; BLOCK], start: i32) -> Self::I {
        let [first, second] = self.dot_u6_halves(w, a, [start, 0]);
        unsafe {
            [
                _mm256_add_epi32(first[0], second[0]),
                _mm256_add_epi32(first[1], second[1]),
            ]
        }
    }
    #[inline(always)]
    fn dot_u6_halves(self, w: &[Self::B; 8], a: &[i8; BLOCK], starts: [i32; 2]) -> [Self::I; 2] {
        unsafe {
            // A pair's products are at most 2 · 63 · 127 = 16,002: two of them still fit 16 bits.
            let ones = _mm256_set1_epi16(1);
            let mut sums = starts.map(|start| [_mm256_set1_epi32(start); 2]);
            for pair in 0..4 {
                let (even, odd) = (2 * pair, 2 * pair + 1);
                let (a_even, a_odd) = (_mm256_set1_epi32(quad(a, even)), _mm256_set1_epi32(quad(a, odd)));
                for half in 0..2 {
                    let products = _mm256_add_epi16(
                        _mm256_maddubs_epi16(w[even][half], a_even),
                        _mm256_maddubs_epi16(w[odd][half], a_odd),
                    );
                    let sum = &mut sums[pair / 2][half];
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(products, ones));
                }
            }
            sums
        }
    }
    #[inline(always)]
    fn unpack_s8(self, from: &[u8; 512]) -> [Self::B; 8] {
        unsafe {
            let offset = _mm256_set1_epi8(-128);
            let mut out = [[offset; 2]; 8];
            for group in 0..8 {
                for half in 0..2 {
                    let bytes = _mm256_loadu_si256(from.as_ptr().add(group * 64 + half * 32).cast());
                    out[group][half] = _mm256_xor_si256(bytes, offset);
                }
            }
            out
        }
    }
    #[inline(always)]
    fn dot_s8(self, w: &[Self::B; 8], a: &[i8; BLOCK], _a_sum: i32) -> Self::I {
        unsafe {
            // |w| · (a with w's sign): a pair is at most 2 · 128 · 127 = 32,512, so `maddubs` does not saturate; but two pairs would.
            let ones = _mm256_set1_epi16(1);
            let mut sum = [_mm256_setzero_si256(); 2];
            for group in 0..8 {
                let a = _mm256_set1_epi32(quad(a, group));
                for half in 0..2 {
                    let w = w[group][half];
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
                    sum[half] = _mm256_add_epi32(sum[half], _mm256_madd_epi16(pairs, ones));
                }
            }
            sum
        }
    }
}

/// # Safety
/// The processor must have AVX2.
#[inline(always)]
unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller's promise; no memory is touched.
    unsafe {
        let mut out = r;
        // u[g][c], 128-bit lane L: column 4L + c of rows 4g..4g + 4.
        let mut u = [[_mm256_setzero_ps(); 4]; 2];
        for g in 0..2 {
            let low01 = _mm256_castps_pd(_mm256_unpacklo_ps(r[4 * g], r[4 * g + 1]));
            let high01 = _mm256_castps_pd(_mm256_unpackhi_ps(r[4 * g], r[4 * g + 1]));
            let low23 = _mm256_castps_pd(_mm256_unpacklo_ps(r[4 * g + 2], r[4 * g + 3]));
            let high23 = _mm256_castps_pd(_mm256_unpackhi_ps(r[4 * g + 2], r[4 * g + 3]));
            u[g][0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
            u[g][1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
            u[g][2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
            u[g][3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
        }
        for c in 0..4 {
            out[c] = _mm256_permute2f128_ps::<0x20>(u[0][c], u[1][c]);
            out[4 + c] = _mm256_permute2f128_ps::<0x31>(u[0][c], u[1][c]);
        }
        out
    }
}
