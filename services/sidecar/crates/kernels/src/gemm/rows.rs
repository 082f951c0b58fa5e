//! Activations for quantised weights: rows in blocks of 8-bit integers.

use crate::aligned::SharedMut;
use crate::cpu::Cpu;
use crate::error::{KernelError, expect_len};
use crate::simd::BLOCK;

/// What one block of a quantised row needs beside its integers.
#[derive(Clone, Copy, Default)]
pub(crate) struct BlockScale {
    /// `max |x| / 127` over the block.
    pub(crate) scale: f32,
    /// Sum of the integers.
    pub(crate) sum: i32,
    /// Sum of the first 16.
    pub(crate) first_sum: i32,
    /// `scale · sum`.
    pub(crate) scaled_sum: f32,
}

/// Rows quantised per block of 32: `x ≈ scale · q`, `|x - scale · q| <= scale / 2`. A row's values depend on that row only.
#[derive(Default)]
pub struct QuantisedRows {
    cols: usize,
    rows: usize,
    values: Vec<i8>,
    scales: Vec<BlockScale>,
}

impl QuantisedRows {
    /// Replaces the content by `x`, row-major `[rows, cols]`.
    ///
    /// # Errors
    /// [`KernelError::PartialBlock`], or [`KernelError::ShapeMismatch`] when `x` is not `rows` rows.
    pub fn quantise(&mut self, cpu: &Cpu, x: &[f32], rows: usize, cols: usize) -> Result<(), KernelError> {
        if rows > 0 && !cols.is_multiple_of(BLOCK) {
            return Err(KernelError::PartialBlock { block_len: BLOCK, cols });
        }
        expect_len("activations", rows * cols, x.len())?;
        (self.rows, self.cols) = (rows, cols);
        self.values.resize(rows * cols, 0);
        self.scales.resize(rows * cols / BLOCK, BlockScale::default());
        let values = SharedMut::new(&mut self.values);
        let scales = SharedMut::new(&mut self.scales);
        cpu.over_rows(rows, &|begin, end| {
            // SAFETY: the ranges of rows of one region are disjoint, and so are these parts.
            let (values, scales) = unsafe {
                (
                    values.slice(begin * cols, (end - begin) * cols),
                    scales.slice(begin * cols / BLOCK, (end - begin) * cols / BLOCK),
                )
            };
            cpu.isa.run(Quantise {
                x: &x[begin * cols..end * cols],
                values,
                scales,
            });
        });
        Ok(())
    }

    pub(crate) fn expect_shape(&self, rows: usize, cols: usize) -> Result<(), KernelError> {
        expect_len("columns of the quantised activations", cols, self.cols)?;
        expect_len("rows of the quantised activations", rows, self.rows)
    }

    /// Blocks of one row.
    #[inline(always)]
    pub(super) fn blocks(&self, row: usize, blocks: std::ops::Range<usize>) -> (&[[i8; BLOCK]], &[BlockScale]) {
        let start = row * self.cols / BLOCK + blocks.start;
        let values = self.values.as_chunks().0;
        (&values[start..][..blocks.len()], &self.scales[start..][..blocks.len()])
    }

    #[cfg(test)]
    pub(crate) fn block(&self, row: usize, block: usize) -> (&[i8; BLOCK], &BlockScale) {
        let at = row * self.cols + block * BLOCK;
        let values = self.values[at..].first_chunk();
        (values.unwrap_or(&[0; BLOCK]), &self.scales[at / BLOCK])
    }
}

struct Quantise<'a> {
    x: &'a [f32],
    values: &'a mut [i8],
    scales: &'a mut [BlockScale],
}

impl crate::isa::Kernel for Quantise<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: crate::simd::Simd>(self, _: S) {
        let blocks = self
            .x
            .as_chunks::<BLOCK>()
            .0
            .iter()
            .zip(self.values.as_chunks_mut::<BLOCK>().0);
        for ((x, q), scale) in blocks.zip(self.scales) {
            *scale = quantise_block(x, q);
        }
    }
}

/// Plain loops over 32 elements, which the compiler vectorises for the features it is inlined into.
#[inline(always)]
fn quantise_block(x: &[f32; BLOCK], q: &mut [i8; BLOCK]) -> BlockScale {
    let mut lanes = [0.0_f32; 16];
    for i in 0..16 {
        let (a, b) = (x[i].abs(), x[i + 16].abs());
        lanes[i] = if a > b { a } else { b };
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = if lanes[i] > lanes[i + half] {
                lanes[i]
            } else {
                lanes[i + half]
            };
        }
    }
    let largest = lanes[0];
    // Below this the reciprocal would overflow; such a block is zero for all that follows.
    let inverse = if largest > 1e-30 { 127.0 / largest } else { 0.0 };
    let mut sums = [0; 2];
    for i in 0..BLOCK {
        // Adding 1.5 · 2^23 rounds to an integer, ties to even, and leaves it in the low byte.
        let biased = x[i] * inverse + crate::math::ROUND;
        q[i] = biased.to_bits() as i8;
        sums[i / 16] += i32::from(q[i]);
    }
    let scale = if largest > 1e-30 { largest / 127.0 } else { 0.0 };
    let sum = sums[0] + sums[1];
    BlockScale {
        scale,
        sum,
        first_sum: sums[0],
        scaled_sum: scale * sum as f32,
    }
}
