//! Products of f32, f16 and bf16 weights: `acc = fma(w, x, acc)` for each column in order.
//!
//! With bf16 pairs the activations are rounded to bf16 too, and of each pair the odd column goes first: what the processors' own instruction
//! does (Intel SDM, VDPBF16PS), and what the others repeat.

use super::dense_rows::{DenseRows, GROUP};
use crate::aligned::as_u16;
use crate::isa::Kernel;
use crate::simd::element::{Brain, Element, Half, Single};
use crate::simd::{LANES, Simd, unroll};
use std::marker::PhantomData;

/// How a panel's lines are read and multiplied; a line meets one word of each row.
pub(super) trait DenseFormat {
    /// 16 weights, or 16 pairs.
    type Line;
    /// A line in a register.
    type Vector<S: Simd>: Copy;
    fn lines(weights: &[u8]) -> &[Self::Line];
    fn load<S: Simd>(s: S, line: &Self::Line) -> Self::Vector<S>;
    /// `acc + w · word`.
    fn multiply<S: Simd>(s: S, weights: Self::Vector<S>, word: u32, acc: S::F) -> S::F;
}

macro_rules! single_format {
    ($element:ident, $bits:ty) => {
        impl DenseFormat for $element {
            type Line = [$bits; LANES];
            type Vector<S: Simd> = S::F;
            #[inline(always)]
            fn lines(weights: &[u8]) -> &[Self::Line] {
                $element::view(weights).as_chunks().0
            }
            #[inline(always)]
            fn load<S: Simd>(s: S, line: &Self::Line) -> S::F {
                <$element as Element>::load(s, line)
            }
            #[inline(always)]
            fn multiply<S: Simd>(s: S, weights: S::F, word: u32, acc: S::F) -> S::F {
                s.fma(weights, s.splat(f32::from_bits(word)), acc)
            }
        }
    };
}
single_format!(Single, f32);
single_format!(Half, u16);
single_format!(Brain, u16);

/// Pairs of bf16, multiplied as bf16.
pub(super) struct BrainPairs;

impl DenseFormat for BrainPairs {
    type Line = [u16; 2 * LANES];
    type Vector<S: Simd> = S::I;
    #[inline(always)]
    fn lines(weights: &[u8]) -> &[Self::Line] {
        as_u16(weights).as_chunks().0
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, line: &Self::Line) -> S::I {
        s.load_pairs(line)
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, weights: S::I, word: u32, acc: S::F) -> S::F {
        s.dot_bf16(acc, weights, word)
    }
}

/// A panel times `sums.len()` rows from `row`.
pub(super) struct Multiply<'a, T> {
    pub(super) weights: &'a [u8],
    pub(super) x: &'a DenseRows,
    pub(super) row: usize,
    /// The 16 results of each row.
    pub(super) sums: &'a mut [[f32; LANES]],
    pub(super) format: PhantomData<T>,
}

impl<T: DenseFormat> Kernel for Multiply<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (weights, x, sums) = (self.weights, self.x, self.sums);
        let mut done = 0;
        while sums.len() > done && x.begins_group(self.row + done) {
            let group = x.group(self.row + done);
            if S::WIDE {
                put(s, &mut sums[done..], grouped::<S, T, 16>(s, weights, group, 0));
            } else {
                for first in (0..GROUP).step_by(4) {
                    put(
                        s,
                        &mut sums[done + first..],
                        grouped::<S, T, 4>(s, weights, group, first),
                    );
                }
            }
            done += GROUP;
        }
        if S::WIDE && sums.len() - done >= 8 {
            put(s, &mut sums[done..], alone::<S, T, 8>(s, weights, x, self.row + done));
            done += 8;
        }
        while sums.len() - done >= 4 {
            put(s, &mut sums[done..], alone::<S, T, 4>(s, weights, x, self.row + done));
            done += 4;
        }
        while sums.len() > done {
            put(s, &mut sums[done..], alone::<S, T, 1>(s, weights, x, self.row + done));
            done += 1;
        }
    }
}

#[inline(always)]
pub(super) fn put<S: Simd, const ROWS: usize>(s: S, sums: &mut [[f32; LANES]], results: [S::F; ROWS]) {
    for (sum, result) in sums.iter_mut().zip(results) {
        s.store(result, sum);
    }
}

/// `ROWS` rows of a group from its row `first`.
#[inline(always)]
fn grouped<S: Simd, T: DenseFormat, const ROWS: usize>(
    s: S,
    weights: &[u8],
    group: &[[u32; GROUP]],
    first: usize,
) -> [S::F; ROWS] {
    let mut acc = [s.splat(0.0); ROWS];
    for (line, words) in T::lines(weights).iter().zip(group) {
        let w = T::load(s, line);
        let words = &words[first..first + ROWS];
        unroll!(i < ROWS, {
            acc[i] = T::multiply(s, w, words[i], acc[i]);
        });
    }
    acc
}

/// `ROWS` rows outside the groups.
#[inline(always)]
fn alone<S: Simd, T: DenseFormat, const ROWS: usize>(s: S, weights: &[u8], x: &DenseRows, row: usize) -> [S::F; ROWS] {
    let mut rows = [x.row(row); ROWS];
    for i in 1..ROWS {
        rows[i] = x.row(row + i);
    }
    let mut acc = [s.splat(0.0); ROWS];
    for (word, line) in T::lines(weights).iter().enumerate().take(rows[0].len()) {
        let w = T::load(s, line);
        unroll!(i < ROWS, {
            acc[i] = T::multiply(s, w, rows[i][word], acc[i]);
        });
    }
    acc
}
