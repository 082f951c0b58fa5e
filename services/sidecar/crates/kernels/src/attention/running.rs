//! The running softmax of a task's queries, and how two of them become one.

use crate::isa::Kernel;
use crate::math::exp;
use crate::simd::{LANES, Simd};

/// Query `i` is row `i / group`, head `i % group` of the group.
pub(super) struct Running {
    /// Elements of a head, to whole vectors.
    pub(super) padded: usize,
    /// `[queries][padded head]`: sums of weighted values.
    pub(super) sums: Vec<f32>,
    /// Largest score so far; below all numbers before the first.
    pub(super) largest: Vec<f32>,
    /// Sums of weights, a lane for each key of the tile.
    pub(super) totals: Vec<[f32; LANES]>,
    /// This tile's weights.
    pub(super) weights: Vec<[f32; LANES]>,
    /// This tile's correction of earlier sums.
    pub(super) corrections: Vec<f32>,
}

impl Running {
    pub(super) fn new(queries: usize, padded: usize) -> Self {
        Self {
            padded,
            sums: vec![0.0; queries * padded],
            largest: vec![f32::NEG_INFINITY; queries],
            totals: vec![[0.0; LANES]; queries],
            weights: vec![[0.0; LANES]; queries],
            corrections: vec![0.0; queries],
        }
    }
}

/// The first takes in the second, whose keys come after its own.
pub(super) struct Join<'a>(pub(super) &'a mut Running, pub(super) &'a Running);

impl Kernel for Join<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(first, second) = self;
        for query in 0..first.largest.len() {
            let (before, after) = (first.largest[query], second.largest[query]);
            if after == f32::NEG_INFINITY {
                continue; // The row comes before these keys.
            }
            let largest = if after > before { after } else { before };
            let mine = exp(s, s.splat(before - largest));
            let theirs = exp(s, s.splat(after - largest));
            let totals = s.mul(s.load(&first.totals[query]), mine);
            let totals = s.fma(s.load(&second.totals[query]), theirs, totals);
            s.store(totals, &mut first.totals[query]);
            first.largest[query] = largest;
            let range = query * first.padded..(query + 1) * first.padded;
            let to = first.sums[range.clone()].as_chunks_mut::<LANES>().0;
            for (to, from) in to.iter_mut().zip(second.sums[range].as_chunks::<LANES>().0) {
                let kept = s.mul(s.load(to), mine);
                s.store(s.fma(s.load(from), theirs, kept), to);
            }
        }
    }
}
