//! Elementary functions on 16 lanes, the same bits on every instruction set.

use crate::simd::Simd;

/// `1.5 · 2^23`: adding it rounds a small number to an integer (ties to even) that then sits in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;
/// Inputs are clamped to `[EXP_MIN, EXP_MAX]`, so that `2^n` is a normal number and the result finite.
const EXP_MIN: f32 = -87.0;
const EXP_MAX: f32 = 88.0;
// ln 2 in two parts; the first has 9 trailing zero bits, so n · LN2_HIGH is exact for |n| < 2^9.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x`, relative error below 3 · 2^-24 on `[-87, 88]`; outside, the value at the nearer end (so never 0, infinite, or, even for NaN
/// input, NaN).
///
/// `x = n ln 2 + r`, `|r| <= ln 2 / 2`, `e^r` by its Taylor series to degree 7: the first term left out is below `|r|^8 / 8! < 6e-9`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.min(s.max(x, s.splat(EXP_MIN)), s.splat(EXP_MAX));
    let biased = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(biased, s.splat(ROUND));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut series = s.splat(1.0 / 5040.0);
    series = s.fma(series, r, s.splat(1.0 / 720.0));
    series = s.fma(series, r, s.splat(1.0 / 120.0));
    series = s.fma(series, r, s.splat(1.0 / 24.0));
    series = s.fma(series, r, s.splat(1.0 / 6.0));
    series = s.fma(series, r, s.splat(0.5));
    series = s.fma(series, r, s.splat(1.0));
    series = s.fma(series, r, s.splat(1.0));
    s.mul(series, s.pow2_of_biased(biased))
}

/// GELU by its tanh approximation, `x/2 (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`, as `x · sigmoid` of twice the tanh's argument (Hendrycks &
/// Gimpel, "Gaussian Error Linear Units", 2016).
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const TWICE_ROOT: f32 = 1.595_769_2;
    let cubic = s.fma(s.mul(x, x), s.splat(0.044_715 * TWICE_ROOT), s.splat(TWICE_ROOT));
    let negated = s.sub(s.splat(0.0), s.mul(x, cubic));
    s.div(x, s.add(s.splat(1.0), exp(s, negated)))
}

/// `x · sigmoid(x)`, the activation of SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020).
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let negated = s.sub(s.splat(0.0), x);
    s.div(x, s.add(s.splat(1.0), exp(s, negated)))
}
