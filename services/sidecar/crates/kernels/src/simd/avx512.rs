//! AVX-512 with VNNI: one register holds the 16 lanes.

use super::{BLOCK, LANES, Numbers, Simd, nibbles_of, quad, unroll};
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, BW, DQ, VL and VNNI (with AVX2, FMA and F16C), and `BF16` if it says so.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    pub(crate) fn is_available() -> bool {
        (!BF16 || is_x86_feature_detected!("avx512bf16"))
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }

    /// # Safety
    /// [`Avx512::is_available`] must have answered yes.
    #[inline(always)]
    pub(crate) unsafe fn assume_available() -> Self {
        Self(())
    }
}

// SAFETY of every unsafe block below: `self` proves that the instructions exist; loads and stores go through references to arrays of
// exactly the size accessed, with unaligned forms.
impl<const BF16: bool> Simd for Avx512<BF16> {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    const WIDE: bool = true;

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
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn store_f16(self, value: __m512, to: &mut [u16; LANES]) {
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), half);
        }
    }
    #[inline(always)]
    fn store_bf16(self, value: __m512, to: &mut [u16; LANES]) {
        unsafe {
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            let chosen = _mm512_mask_mov_epi32(rounded, nan, quiet);
            _mm256_storeu_si256(
                to.as_mut_ptr().cast(),
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(chosen)),
            );
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn pow2_of_biased(self, biased: __m512) -> __m512 {
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(biased));
            _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_castps_si512(_mm512_set1_ps(1.0))))
        }
    }
    #[inline(always)]
    fn select_first(self, count: usize, value: __m512, other: __m512) -> __m512 {
        let mask = if count >= LANES { u16::MAX } else { (1 << count) - 1 };
        unsafe { _mm512_mask_mov_ps(other, mask, value) }
    }
    #[inline(always)]
    fn reduce_sum(self, value: __m512) -> f32 {
        unsafe {
            let v8 = _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value));
            sum8(v8)
        }
    }
    #[inline(always)]
    fn reduce_max(self, value: __m512) -> f32 {
        unsafe {
            let v8 = _mm256_max_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value));
            let v4 = _mm_max_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
            let v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_max_ss(v2, _mm_movehdup_ps(v2)))
        }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [__m512; LANES]) {
        unsafe {
            // u[g][c], 128-bit lane L: column 4L + c of rows 4g..4g + 4.
            let mut u = [[_mm512_setzero_ps(); 4]; 4];
            for g in 0..4 {
                let (r0, r1, r2, r3) = (rows[4 * g], rows[4 * g + 1], rows[4 * g + 2], rows[4 * g + 3]);
                let low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1));
                let high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1));
                let low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));
                let high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
                u[g][0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
                u[g][1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
                u[g][2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
                u[g][3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
            }
            for c in 0..4 {
                let even01 = _mm512_shuffle_f32x4::<0x88>(u[0][c], u[1][c]);
                let even23 = _mm512_shuffle_f32x4::<0x88>(u[2][c], u[3][c]);
                let odd01 = _mm512_shuffle_f32x4::<0xdd>(u[0][c], u[1][c]);
                let odd23 = _mm512_shuffle_f32x4::<0xdd>(u[2][c], u[3][c]);
                rows[c] = _mm512_shuffle_f32x4::<0x88>(even01, even23);
                rows[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd01, odd23);
                rows[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even01, even23);
                rows[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd01, odd23);
            }
        }
    }

    #[inline(always)]
    fn f32_from_i32(self, value: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(value) }
    }
    #[inline(always)]
    fn dot_quad(self, sum: __m512i, w: __m512i, a: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(a)) }
    }
    #[inline(always)]
    fn zero_i32(self) -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u16; 2 * LANES]) -> __m512i {
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn widen_pairs(self, pairs: __m512) -> (__m512, __m512) {
        unsafe {
            let bits = _mm512_castps_si512(pairs);
            let odd = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)),
                _mm512_castsi512_ps(odd),
            )
        }
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m512, w: __m512i, x: u32) -> __m512 {
        unsafe {
            if BF16 {
                // The same bits under the type that the instruction's factors have.
                let pairs = |bits| std::mem::transmute::<__m512i, __m512bh>(bits);
                return _mm512_dpbf16_ps(acc, pairs(w), pairs(_mm512_set1_epi32(x as i32)));
            }
            let (even, odd) = self.widen_pairs(_mm512_castsi512_ps(w));
            let acc = self.fma(odd, self.splat(f32::from_bits(x & 0xffff_0000)), acc);
            self.fma(even, self.splat(f32::from_bits(x << 16)), acc)
        }
    }
    #[inline(always)]
    fn unpack_u4(self, from: &[u8; 256]) -> [__m512i; 8] {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            let mut out = [mask; 8];
            for line in 0..4 {
                let bytes = _mm512_loadu_si512(from.as_ptr().add(line * 64).cast());
                out[line] = _mm512_and_si512(bytes, mask);
                out[line + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
            }
            out
        }
    }
    #[inline(always)]
    fn dot_u4(self, w: &[__m512i; 8], a: &[i8; BLOCK], start: i32) -> __m512i {
        unsafe {
            let mut sum = _mm512_set1_epi32(start);
            for group in 0..8 {
                sum = self.dot_quad(sum, w[group], quad(a, group));
            }
            sum
        }
    }
    #[inline(always)]
    fn dot_rows<const N: usize>(
        self,
        numbers: Numbers,
        w: &[__m512i; 8],
        a: [&[i8; BLOCK]; N],
        starts: [i32; N],
    ) -> [__m512i; N] {
        let scale = if let Numbers::S8 = numbers { -128 } else { 1 };
        let mut sums = [self.zero_i32(); N];
        for i in 0..N {
            sums[i] = unsafe { _mm512_set1_epi32(scale * starts[i]) };
        }
        // The rows in turn: each sum waits for its last product, and one row's wait is the others' time.
        unroll!(group < 8, {
            unroll!(i < N, {
                sums[i] = self.dot_quad(sums[i], w[group], quad(a[i], group));
            });
        });
        sums
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn store_u8(self, value: __m512, to: &mut [u8; LANES]) {
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(value))) }
    }
    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn unpack_u5(self, from: &[u8; 320]) -> [__m512i; 8] {
        let mut out = self.unpack_u4(nibbles_of(from));
        unsafe {
            let bits = _mm512_loadu_si512(from.as_ptr().add(256).cast());
            let mask = _mm512_set1_epi8(16);
            // Shifts of 16-bit lanes: what crosses from one byte into the other is masked off.
            let shifted = [
                _mm512_slli_epi16::<4>(bits),
                _mm512_slli_epi16::<3>(bits),
                _mm512_slli_epi16::<2>(bits),
                _mm512_slli_epi16::<1>(bits),
                bits,
                _mm512_srli_epi16::<1>(bits),
                _mm512_srli_epi16::<2>(bits),
                _mm512_srli_epi16::<3>(bits),
            ];
            for group in 0..8 {
                out[group] = _mm512_or_si512(out[group], _mm512_and_si512(shifted[group], mask));
            }
        }
        out
    }
    #[inline(always)]
    fn unpack_u6(self, from: &[u8; 384]) -> [__m512i; 8] {
        let mut out = self.unpack_u4(nibbles_of(from));
        unsafe {
            let mask = _mm512_set1_epi8(0x30);
            for half in 0..2 {
                let pairs = _mm512_loadu_si512(from.as_ptr().add(256 + half * 64).cast());
                let shifted = [
                    _mm512_slli_epi16::<4>(pairs),
                    _mm512_slli_epi16::<2>(pairs),
                    pairs,
                    _mm512_srli_epi16::<2>(pairs),
                ];
                for part in 0..4 {
                    let group = half * 4 + part;
                    out[group] = _mm512_or_si512(out[group], _mm512_and_si512(shifted[part], mask));
                }
            }
        }
        out
    }
    #[inline(always)]
    fn dot_u6(self, w: &[__m512i; 8], a: &[i8; BLOCK], start: i32) -> __m512i {
        self.dot_u4(w, a, start)
    }
    #[inline(always)]
    fn dot_u6_halves(self, w: &[__m512i; 8], a: &[i8; BLOCK], starts: [i32; 2]) -> [__m512i; 2] {
        let mut sums = unsafe { starts.map(|start| _mm512_set1_epi32(start)) };
        for group in 0..8 {
            sums[group / 4] = self.dot_quad(sums[group / 4], w[group], quad(a, group));
        }
        sums
    }
    #[inline(always)]
    fn unpack_s8(self, from: &[u8; 512]) -> [__m512i; 8] {
        unsafe {
            let mut out = [_mm512_setzero_si512(); 8];
            for group in 0..8 {
                out[group] = _mm512_loadu_si512(from.as_ptr().add(group * 64).cast());
            }
            out
        }
    }
    #[inline(always)]
    fn dot_s8(self, w: &[__m512i; 8], a: &[i8; BLOCK], a_sum: i32) -> __m512i {
        // Weights are stored plus 128, so they are unsigned, as the instruction wants its first factor.
        self.dot_u4(w, a, -128 * a_sum)
    }
}

/// Sum of 8 lanes by the tree of [`Simd::reduce_sum`].
///
/// # Safety
/// The processor must have AVX.
#[inline(always)]
pub(super) unsafe fn sum8(v8: __m256) -> f32 {
    // SAFETY: the caller's promise; no memory is touched.
    unsafe {
        let v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
        let v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
        _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)))
    }
}
