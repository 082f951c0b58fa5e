//! The inner loops: `ROWS` activation rows times one panel of 16 weight rows.
//!
//! Every sum runs over the columns in order, one lane per output, so an output's bits depend on its row and its weights only: not on the
//! tile's height, on the other rows in the batch, or on which thread ran it. Dense: `acc = fma(w, x, acc)` for each column. Quantised: for
//! each block an exact integer dot product, then `acc = fma(dot, d · s, acc)` and, where there are minima, `acc = fma(m, s · Σa, acc)`. The
//! scales of the K-quants, products of 11 and at most 8 bits, and the sum of Q6_K's two scaled halves are exact in f32.

use super::blocks::{MINIMA_BYTES, SIGNED_BYTES, SUPER_BLOCKS};
use super::pack::{Panel, WeightType};
use super::rows::QuantisedRows;
use crate::aligned::as_u16;
use crate::simd::element::{Brain, Element, Half, Single};
use crate::simd::{BLOCK, LANES, Simd, unroll};

/// Rows of activations, in the form that the weights need.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) cols: usize,
    pub(crate) dense: &'a [f32],
    pub(crate) quantised: &'a QuantisedRows,
}

#[inline(always)]
pub(crate) fn tile<S: Simd, const ROWS: usize>(s: S, panel: Panel<'_>, x: Input<'_>, row: usize) -> [S::F; ROWS] {
    match panel.weight_type {
        WeightType::F32 => dense::<S, Single, ROWS>(s, panel.weights, x, row),
        WeightType::F16 => dense::<S, Half, ROWS>(s, panel.weights, x, row),
        WeightType::Bf16 => dense::<S, Brain, ROWS>(s, panel.weights, x, row),
        WeightType::Q8_0 => q8_0(s, panel, x, row),
        WeightType::Q4_0 => q4_0(s, panel, x, row),
        WeightType::Q4_1 => q4_1(s, panel, x, row),
        WeightType::Q5_0 => q5_0(s, panel, x, row),
        WeightType::Q4_K => with_minima::<S, 256, ROWS>(s, panel, x, row),
        WeightType::Q5_K => with_minima::<S, 320, ROWS>(s, panel, x, row),
        WeightType::Q6_K => q6_k(s, panel, x, row),
    }
}

#[inline(always)]
fn dense<S: Simd, E: Element, const ROWS: usize>(s: S, weights: &[u8], x: Input<'_>, row: usize) -> [S::F; ROWS] {
    let mut rows = [x.dense; ROWS];
    for i in 0..ROWS {
        rows[i] = &x.dense[(row + i) * x.cols..][..x.cols];
    }
    let mut acc = [s.splat(0.0); ROWS];
    for (col, w) in E::view(weights).as_chunks::<LANES>().0.iter().enumerate().take(x.cols) {
        let w = E::load(s, w);
        unroll!(i < ROWS, {
            acc[i] = s.fma(w, s.splat(rows[i][col]), acc[i]);
        });
    }
    acc
}

#[inline(always)]
fn scale_at<S: Simd>(s: S, scales: &[u16], index: usize) -> S::F {
    match scales[index * LANES..].first_chunk() {
        Some(scales) => s.load_f16(scales),
        None => s.splat(0.0),
    }
}

#[inline(always)]
fn q8_0<S: Simd, const ROWS: usize>(s: S, panel: Panel<'_>, x: Input<'_>, row: usize) -> [S::F; ROWS] {
    let scales = as_u16(panel.scales);
    let mut acc = [s.splat(0.0); ROWS];
    for (block, bytes) in panel.weights.as_chunks::<512>().0.iter().enumerate() {
        let w = s.unpack_s8(bytes);
        let d = scale_at(s, scales, block);
        unroll!(i < ROWS, {
            let (a, a_scale) = x.quantised.block(row + i, block);
            let dot = s.f32_from_i32(s.dot_s8(&w, a, a_scale.sum));
            acc[i] = s.fma(dot, s.mul(d, s.splat(a_scale.scale)), acc[i]);
        });
    }
    acc
}

#[inline(always)]
fn q4_0<S: Simd, const ROWS: usize>(s: S, panel: Panel<'_>, x: Input<'_>, row: usize) -> [S::F; ROWS] {
    let scales = as_u16(panel.scales);
    let mut acc = [s.splat(0.0); ROWS];
    for (block, bytes) in panel.weights.as_chunks::<256>().0.iter().enumerate() {
        let w = s.unpack_u4(bytes);
        let d = scale_at(s, scales, block);
        unroll!(i < ROWS, {
            let (a, a_scale) = x.quantised.block(row + i, block);
            let dot = s.f32_from_i32(s.dot_u4(&w, a, -8 * a_scale.sum));
            acc[i] = s.fma(dot, s.mul(d, s.splat(a_scale.scale)), acc[i]);
        });
    }
    acc
}

#[inline(always)]
fn q4_1<S: Simd, const ROWS: usize>(s: S, panel: Panel<'_>, x: Input<'_>, row: usize) -> [S::F; ROWS] {
    let scales = as_u16(panel.scales);
    let mut acc = [s.splat(0.0); ROWS];
    for (block, bytes) in panel.weights.as_chunks::<256>().0.iter().enumerate() {
        let w = s.unpack_u4(bytes);
        let (d, m) = (scale_at(s, scales, 2 * block), scale_at(s, scales, 2 * block + 1));
        unroll!(i < ROWS, {
            let (a, a_scale) = x.quantised.block(row + i, block);
            let dot = s.f32_from_i32(s.dot_u4(&w, a, 0));
            acc[i] = s.fma(dot, s.mul(d, s.splat(a_scale.scale)), acc[i]);
            acc[i] = s.fma(m, s.splat(a_scale.scaled_sum), acc[i]);
        });
    }
    acc
}

#[inline(always)]
fn q5_0<S: Simd, const ROWS: usize>(s: S, panel: Panel<'_>, x: Input<'_>, row: usize) -> [S::F; ROWS] {
    let scales = as_u16(panel.scales);
    let mut acc = [s.splat(0.0); ROWS];
    for (block, bytes) in panel.weights.as_chunks::<320>().0.iter().enumerate() {
        let w = s.unpack_u5(bytes);
        let d = scale_at(s, scales, block);
        unroll!(i < ROWS, {
            let (a, a_scale) = x.quantised.block(row + i, block);
            let dot = s.f32_from_i32(s.dot_u6(&w, a, -16 * a_scale.sum));
            acc[i] = s.fma(dot, s.mul(d, s.splat(a_scale.scale)), acc[i]);
        });
    }
    acc
}

/// 16 bytes of scales from `at`.
#[inline(always)]
fn bytes_at(scales: &[u8], at: usize) -> &[u8; LANES] {
    scales[at..].first_chunk().unwrap_or(&[0; LANES])
}

/// Q4_K and Q5_K, whose blocks take 256 and 320 bytes.
#[inline(always)]
fn with_minima<S: Simd, const BYTES: usize, const ROWS: usize>(
    s: S,
    panel: Panel<'_>,
    x: Input<'_>,
    row: usize,
) -> [S::F; ROWS] {
    let mut acc = [s.splat(0.0); ROWS];
    let super_blocks = panel.weights.chunks_exact(SUPER_BLOCKS * BYTES);
    for (index, (weights, scales)) in super_blocks.zip(panel.scales.chunks_exact(MINIMA_BYTES)).enumerate() {
        let halves = as_u16(&scales[..64]);
        let (d_all, m_all) = (scale_at(s, halves, 0), scale_at(s, halves, 1));
        for (sub, bytes) in weights.as_chunks::<BYTES>().0.iter().enumerate() {
            let w = match (bytes.first_chunk(), bytes.first_chunk()) {
                (_, Some(bytes)) if BYTES == 320 => s.unpack_u5(bytes),
                (Some(bytes), _) => s.unpack_u4(bytes),
                _ => return acc,
            };
            let d = s.mul(d_all, s.load_u8(bytes_at(scales, 64 + sub * LANES)));
            let m = s.mul(m_all, s.load_u8(bytes_at(scales, 192 + sub * LANES)));
            unroll!(i < ROWS, {
                let (a, a_scale) = x.quantised.block(row + i, index * SUPER_BLOCKS + sub);
                let dot = if BYTES == 320 {
                    s.dot_u6(&w, a, 0)
                } else {
                    s.dot_u4(&w, a, 0)
                };
                acc[i] = s.fma(s.f32_from_i32(dot), s.mul(d, s.splat(a_scale.scale)), acc[i]);
                acc[i] = s.fma(m, s.splat(-a_scale.scaled_sum), acc[i]);
            });
        }
    }
    acc
}

#[inline(always)]
fn q6_k<S: Simd, const ROWS: usize>(s: S, panel: Panel<'_>, x: Input<'_>, row: usize) -> [S::F; ROWS] {
    let mut acc = [s.splat(0.0); ROWS];
    let super_blocks = panel.weights.chunks_exact(SUPER_BLOCKS * 384);
    for (index, (weights, scales)) in super_blocks.zip(panel.scales.chunks_exact(SIGNED_BYTES)).enumerate() {
        let d = scale_at(s, as_u16(&scales[..32]), 0);
        for (sub, bytes) in weights.as_chunks::<384>().0.iter().enumerate() {
            let w = s.unpack_u6(bytes);
            let first = s.load_i8(bytes_at(scales, 32 + 2 * sub * LANES));
            let second = s.load_i8(bytes_at(scales, 32 + (2 * sub + 1) * LANES));
            unroll!(i < ROWS, {
                let (a, a_scale) = x.quantised.block(row + i, index * SUPER_BLOCKS + sub);
                let starts = [-32 * a_scale.first_sum, -32 * (a_scale.sum - a_scale.first_sum)];
                let dots = s.dot_u6_halves(&w, a, starts).map(|dot| s.f32_from_i32(dot));
                let dot = s.fma(dots[1], second, s.mul(dots[0], first));
                acc[i] = s.fma(dot, s.mul(d, s.splat(a_scale.scale)), acc[i]);
            });
        }
    }
    acc
}

const _: () = assert!(BLOCK == 32, "the packed formats are blocks of 32");
