//! Products of weights in blocks: for each block an exact integer dot product, then its scales, in the order of the columns.

use super::block_formats::{BlockFormat, Factors};
use super::dense::put;
use super::pack::Panel;
use super::rows::{BlockScale, QuantisedRows};
use crate::isa::Kernel;
use crate::simd::{BLOCK, LANES, Simd, unroll};
use std::marker::PhantomData;
use std::ops::Range;

/// How far ahead of the multiplication weights are asked for: the processor's own prefetch stops at each page, and a panel is little more
/// than one.
const PREFETCH_AHEAD: usize = 4096;

/// A panel times `sums.len()` rows from `row`.
pub(super) struct Multiply<'a, T> {
    pub(super) panel: Panel<'a>,
    pub(super) x: &'a QuantisedRows,
    pub(super) row: usize,
    /// The 16 results of each row.
    pub(super) sums: &'a mut [[f32; LANES]],
    pub(super) format: PhantomData<T>,
}

impl<T: BlockFormat> Kernel for Multiply<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (panel, x, sums) = (self.panel, self.x, self.sums);
        let mut done = 0;
        if S::WIDE {
            while sums.len() - done >= 16 {
                put(s, &mut sums[done..], tile::<S, T, 16>(s, panel, x, self.row + done));
                done += 16;
            }
            if sums.len() - done >= 8 {
                put(s, &mut sums[done..], tile::<S, T, 8>(s, panel, x, self.row + done));
                done += 8;
            }
        }
        while sums.len() - done >= 4 {
            put(s, &mut sums[done..], tile::<S, T, 4>(s, panel, x, self.row + done));
            done += 4;
        }
        while sums.len() > done {
            put(s, &mut sums[done..], tile::<S, T, 1>(s, panel, x, self.row + done));
            done += 1;
        }
    }
}

/// Blocks of one row.
type RowBlocks<'a> = (&'a [[i8; BLOCK]], &'a [BlockScale]);

#[inline(always)]
fn row_blocks<const ROWS: usize>(x: &QuantisedRows, row: usize, blocks: Range<usize>) -> [RowBlocks<'_>; ROWS] {
    let mut rows = [x.blocks(row, blocks.clone()); ROWS];
    for i in 1..ROWS {
        rows[i] = x.blocks(row + i, blocks.clone());
    }
    rows
}

/// One block for all rows, four at a time.
#[inline(always)]
fn multiply_block<S: Simd, T: BlockFormat, const ROWS: usize>(
    s: S,
    (w, factors): (&[S::B; 8], &Factors<S>),
    rows: &[RowBlocks<'_>; ROWS],
    block: usize,
    acc: &mut [S::F; ROWS],
) {
    if ROWS == 1 {
        let (a, scales) = rows[0];
        [acc[0]] = T::multiply(s, w, factors, [&a[block]], [&scales[block]], [acc[0]]);
        return;
    }
    unroll!(four < 4, {
        if four * 4 < ROWS {
            let at = four * 4;
            let (mut a, mut scales, mut sums) = ([&rows[0].0[block]; 4], [&rows[0].1[block]; 4], [acc[0]; 4]);
            unroll!(i < 4, {
                (a[i], scales[i], sums[i]) = (&rows[at + i].0[block], &rows[at + i].1[block], acc[at + i]);
            });
            let sums = T::multiply(s, w, factors, a, scales, sums);
            unroll!(i < 4, {
                acc[at + i] = sums[i];
            });
        }
    });
}

#[inline(always)]
fn tile<S: Simd, T: BlockFormat, const ROWS: usize>(
    s: S,
    panel: Panel<'_>,
    x: &QuantisedRows,
    row: usize,
) -> [S::F; ROWS] {
    let blocks = panel.weights.len() / T::BYTES;
    let rows: [RowBlocks<'_>; ROWS] = row_blocks(x, row, 0..blocks);
    let mut acc = [s.splat(0.0); ROWS];
    for (block, bytes) in panel.weights.chunks_exact(T::BYTES).enumerate() {
        s.prefetch_ahead(bytes, PREFETCH_AHEAD);
        let w = T::weights(s, bytes);
        let factors = T::factors(s, panel.scales, block);
        multiply_block::<S, T, ROWS>(s, (&w, &factors), &rows, block, &mut acc);
    }
    acc
}
