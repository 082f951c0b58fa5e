//! The inner loops: `ROWS` activation rows times one panel of 16 weight rows.
//!
//! Every sum runs over the columns in order, one lane per output, so an output's bits depend on its row and its weights only: not on the
//! tile's height, on the other rows in the batch, or on which thread ran it. Dense: `acc = fma(w, x, acc)` for each column. Quantised: for
//! each block an exact integer dot product, then `acc = fma(dot, d · s, acc)` and, for Q4_1, `acc = fma(m, s · Σa, acc)`.

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

const _: () = assert!(BLOCK == 32, "the packed formats are blocks of 32");
