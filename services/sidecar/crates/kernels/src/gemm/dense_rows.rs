//! Activations for weights of f32, f16 and bf16: words of 32 bits, each an f32 of one column or a pair of bf16 of two.
//!
//! ```text
//! groups of 16 rows   [words][16 rows]: one step of the multiplication takes a line
//! the rows left       [rows][words]
//! ```

use crate::aligned::SharedMut;
use crate::cpu::Cpu;
use crate::error::{KernelError, expect_len};
use crate::isa::Kernel;
use crate::simd::{LANES, Simd};

/// Rows that lie side by side.
pub(super) const GROUP: usize = LANES;

/// Rows as words. Without rows until filled.
#[derive(Default)]
pub(crate) struct DenseRows {
    rows: usize,
    cols: usize,
    /// Words of a row: one for each line of a panel.
    words: usize,
    /// The same, padded to whole vectors.
    stride: usize,
    content: Vec<u32>,
}

impl DenseRows {
    /// f32, as they are.
    pub(super) fn fill_single(&mut self, cpu: &Cpu, x: &[f32], rows: usize, cols: usize) {
        self.fill::<1>(cpu, x, rows, cols);
    }

    /// Rounded to bf16 (nearest, ties to even), two columns a word, the even one in the low half.
    pub(super) fn fill_pairs(&mut self, cpu: &Cpu, x: &[f32], rows: usize, cols: usize) {
        self.fill::<2>(cpu, x, rows, cols);
    }

    fn fill<const COLS: usize>(&mut self, cpu: &Cpu, x: &[f32], rows: usize, cols: usize) {
        let words = cols.div_ceil(COLS);
        let stride = words.next_multiple_of(LANES);
        (self.rows, self.cols, self.words, self.stride) = (rows, cols, words, stride);
        self.content.resize(rows * stride, 0);
        let content = SharedMut::new(&mut self.content);
        let groups = rows / GROUP;
        let tasks = groups + usize::from(!rows.is_multiple_of(GROUP));
        cpu.threads.run(tasks, &|task| {
            let (first, count) = (task * GROUP, (rows - task * GROUP).min(GROUP));
            // SAFETY: tasks own disjoint ranges of rows.
            let content = unsafe { content.slice(first * stride, count * stride) };
            let x = &x[first * cols..(first + count) * cols];
            cpu.isa.run(Fill::<COLS> {
                x,
                cols,
                stride,
                content,
            });
        });
    }

    pub(super) fn expect_shape(&self, rows: usize, cols: usize) -> Result<(), KernelError> {
        expect_len("columns of the dense activations", cols, self.cols)?;
        expect_len("rows of the dense activations", rows, self.rows)
    }

    /// Whether `row` begins a group.
    pub(super) fn begins_group(&self, row: usize) -> bool {
        row.is_multiple_of(GROUP) && row + GROUP <= self.rows
    }

    /// `[words][16 rows]` of the group that begins at `row`.
    #[inline(always)]
    pub(super) fn group(&self, row: usize) -> &[[u32; GROUP]] {
        let lines = self.content[row * self.stride..][..GROUP * self.stride].as_chunks().0;
        &lines[..self.words]
    }

    /// `[words]` of a row outside the groups.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &[u32] {
        &self.content[row * self.stride..][..self.words]
    }
}

/// One group, or the rows left.
struct Fill<'a, const COLS: usize> {
    x: &'a [f32],
    cols: usize,
    stride: usize,
    content: &'a mut [u32],
}

impl<const COLS: usize> Fill<'_, COLS> {
    /// The 16 words of `row` from word `first`.
    #[inline(always)]
    fn words<S: Simd>(&self, s: S, row: usize, first: usize) -> [u32; LANES] {
        let row = &self.x[row * self.cols..][..self.cols];
        let mut out = [0; LANES];
        if COLS == 1 {
            for (out, x) in out.iter_mut().zip(&row[first..]) {
                *out = x.to_bits();
            }
            return out;
        }
        let mut halves = [[0; LANES]; 2];
        for (half, halves) in halves.iter_mut().enumerate() {
            let mut x = [0.0; LANES];
            let start = (2 * first + half * LANES).min(row.len());
            for (to, from) in x.iter_mut().zip(&row[start..]) {
                *to = *from;
            }
            s.store_bf16(s.load(&x), halves);
        }
        for (out, pair) in out.iter_mut().zip(halves.as_flattened().as_chunks::<2>().0) {
            *out = u32::from(pair[0]) | u32::from(pair[1]) << 16;
        }
        out
    }
}

impl<const COLS: usize> Kernel for Fill<'_, COLS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.content.len() / self.stride;
        for first in (0..self.stride).step_by(LANES) {
            if rows < GROUP {
                for row in 0..rows {
                    let words = self.words(s, row, first);
                    self.content[row * self.stride + first..][..LANES].copy_from_slice(&words);
                }
                continue;
            }
            // Bits in lanes: moving them changes none.
            let mut lines = [s.splat(0.0); LANES];
            for (row, line) in lines.iter_mut().enumerate() {
                *line = s.load(&self.words(s, row, first).map(f32::from_bits));
            }
            s.transpose(&mut lines);
            for (word, line) in lines.into_iter().enumerate() {
                let mut bits = [0.0; LANES];
                s.store(line, &mut bits);
                self.content[(first + word) * GROUP..][..GROUP].copy_from_slice(&bits.map(f32::to_bits));
            }
        }
    }
}
