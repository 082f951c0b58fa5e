//! The same with AVX-512 and VNNI: six rows by four vectors of tokens in 24 registers of sums.

use super::matrix8::{Columns8, Matrix8, TILE_ROWS, TILE_VECTORS};
use crate::simd::LANES;
use std::arch::x86_64::*;

/// As the portable one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn multiply(matrix: &Matrix8, columns: &Columns8, tile: usize, stride: usize, out: &mut [f32]) {
    let vectors = stride / LANES;
    for first in (0..vectors).step_by(TILE_VECTORS) {
        match vectors - first {
            1 => tokens::<1>(matrix, columns, tile, stride, first, out),
            2 => tokens::<2>(matrix, columns, tile, stride, first, out),
            3 => tokens::<3>(matrix, columns, tile, stride, first, out),
            _ => tokens::<TILE_VECTORS>(matrix, columns, tile, stride, first, out),
        }
    }
}

/// A tile of rows times `VECTORS` vectors of tokens from vector `first`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tokens<const VECTORS: usize>(
    matrix: &Matrix8,
    columns: &Columns8,
    tile: usize,
    stride: usize,
    first: usize,
    out: &mut [f32],
) {
    let weights = &matrix.weights[tile * matrix.tile_words..][..matrix.tile_words];
    let (begin, _) = columns.place(first);
    for (index, term) in matrix.terms.iter().enumerate() {
        let block = matrix.stored[term.block];
        let at = (tile * matrix.terms.len() + index) * TILE_ROWS;
        let (starts, scales) = (&matrix.starts[at..at + TILE_ROWS], &matrix.scales[at..at + TILE_ROWS]);
        let w = &weights[term.weights_begin..][..block.groups * TILE_ROWS];
        let x = &columns.content[begin + block.group_begin * VECTORS * LANES..][..block.groups * VECTORS * LANES];
        let mut sums = [[_mm512_setzero_si512(); VECTORS]; TILE_ROWS];
        for (sums, start) in sums.iter_mut().zip(starts) {
            *sums = [_mm512_set1_epi32(*start); VECTORS];
        }
        for (w, x) in w.chunks_exact(TILE_ROWS).zip(x.chunks_exact(VECTORS * LANES)) {
            let mut lines = [_mm512_setzero_si512(); VECTORS];
            for (line, x) in lines.iter_mut().zip(x.chunks_exact(LANES)) {
                // SAFETY: 64 bytes behind the reference.
                *line = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
            }
            for row in 0..TILE_ROWS {
                let w = _mm512_set1_epi32(w[row] as i32);
                for vector in 0..VECTORS {
                    sums[row][vector] = _mm512_dpbusd_epi32(sums[row][vector], lines[vector], w);
                }
            }
        }
        let of_columns = &columns.scales[term.block * stride + first * LANES..][..VECTORS * LANES];
        for (row, out) in out.chunks_exact_mut(stride).enumerate() {
            let out = &mut out[first * LANES..][..VECTORS * LANES];
            for vector in 0..VECTORS {
                let (of_columns, out) = (
                    &of_columns[vector * LANES..][..LANES],
                    &mut out[vector * LANES..][..LANES],
                );
                // SAFETY: 64 bytes behind each reference.
                let (scale, before) = unsafe { (_mm512_loadu_ps(of_columns.as_ptr()), _mm512_loadu_ps(out.as_ptr())) };
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(scales[row]));
                let result = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[row][vector]), scale, before);
                // SAFETY: as above.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), result) };
            }
        }
    }
}
