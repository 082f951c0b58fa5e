//! A matrix times columns, both in 8 bits: exact integer sums over blocks of a column's numbers, scaled and added in f32.
//!
//! ```text
//! out[row][token] = offset[row] + Σ over blocks  weight scale [row][block] · column scale [block][token] · Σ  w · (x - 128)
//!
//! weights   [tiles of 6 rows][terms][groups of 4 columns][6 rows][4] of signed bytes
//! columns   [blocks of 64 tokens][blocks][groups of 4][tokens, whole vectors of 16][4] of unsigned bytes, 128 meaning 0
//! ```
//!
//! A token of a block has the scale at which its largest number is 127, so that few large numbers do not drown the others. A block that is
//! held finely is followed by what its rounding left over, as a block of its own, and meets its weights in two parts likewise: 15 bits by 15.
//! Integer sums have no rounding and the f32 ones a fixed order: the same bits on every instruction set.

use super::columns::column_stride;
use super::symbols::ROUNDER;
use crate::aligned::AlignedF32;
use crate::error::{KernelError, expect_len};
use crate::isa::{Isa, Kernel};
use crate::simd::{LANES, Simd};

mod parts;

pub use parts::RowTerm;

/// Rows that are multiplied at once: with 4 vectors of tokens, as many sums as registers hold.
pub(super) const TILE_ROWS: usize = 6;
/// Vectors of tokens that are multiplied at once.
pub(super) const TILE_VECTORS: usize = 4;
/// Numbers of a word.
const GROUP: usize = 4;
/// Largest magnitude of 8 bits.
const LARGEST: f32 = 127.0;
/// Most numbers of a block: their sum of 255 · 127 each stays below 2^31.
const BLOCK_MAX: usize = 1 << 15;

/// How a matrix's columns are cut into blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// Numbers of each block but the last, which may have fewer; a multiple of 4.
    pub length: usize,
    /// Numbers of the first block when it is held finely; 0: it is a block like the others.
    pub fine: usize,
    /// Numbers in all.
    pub count: usize,
}

/// One block as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// First number.
    begin: usize,
    /// Numbers.
    count: usize,
    /// First group of four in a vector of tokens.
    pub(super) group_begin: usize,
    /// Groups of four.
    pub(super) groups: usize,
}

/// Block `block` of the columns meets a block of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    pub(super) block: usize,
    /// First word of each tile's weights.
    pub(super) weights_begin: usize,
}

impl Blocks {
    fn check(&self) -> Result<(), KernelError> {
        let sound = |length: usize| length.is_multiple_of(GROUP) && length <= BLOCK_MAX;
        if self.count == 0 || self.length == 0 || !sound(self.length) || !sound(self.fine) || self.fine > self.count {
            return Err(KernelError::ShapeMismatch {
                what: "blocks",
                expected: self.count,
                actual: self.length,
            });
        }
        Ok(())
    }

    /// Ranges of numbers, in order, that [`Columns8::fill`] is called for.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let (fine, length, count) = (self.fine, self.length, self.count);
        let first = (fine > 0).then_some(0..fine);
        first.into_iter().chain(
            (fine..count)
                .step_by(length)
                .map(move |begin| begin..(begin + length).min(count)),
        )
    }

    /// The blocks as stored; a fine one is there twice.
    fn stored(&self) -> Vec<Block> {
        let mut all: Vec<Block> = Vec::new();
        let mut group_begin = 0;
        let twice = (self.fine > 0).then_some(0..self.fine);
        for range in twice.into_iter().chain(self.ranges()) {
            let groups = range.len().div_ceil(GROUP);
            all.push(Block {
                begin: range.start,
                count: range.len(),
                group_begin,
                groups,
            });
            group_begin += groups;
        }
        all
    }
}

/// A matrix in 8 bits.
pub struct Matrix8 {
    rows: usize,
    blocks: Blocks,
    pub(super) stored: Vec<Block>,
    pub(super) terms: Vec<Term>,
    /// Words of a tile.
    pub(super) tile_words: usize,
    /// `[tiles][tile_words]`.
    pub(super) weights: Vec<u32>,
    /// `[tiles][terms][6]`: scales, and what 128 for 0 adds too much, negated.
    pub(super) scales: Vec<f32>,
    pub(super) starts: Vec<i32>,
}

impl Matrix8 {
    /// Rounds `values`, row-major `[rows][blocks.count]`.
    ///
    /// # Errors
    /// [`KernelError::ShapeMismatch`].
    pub fn new(rows: usize, blocks: Blocks, values: &[f32]) -> Result<Self, KernelError> {
        blocks.check()?;
        expect_len("matrix", rows * blocks.count, values.len())?;
        let stored = blocks.stored();
        let mut terms = Vec::new();
        let mut tile_words = 0;
        // Weights rounded, columns rounded; columns' rest; weights' rest.
        let fine: &[usize] = if blocks.fine > 0 { &[0, 1, 0] } else { &[] };
        for block in fine
            .iter()
            .copied()
            .chain(if blocks.fine > 0 { 2 } else { 0 }..stored.len())
        {
            terms.push(Term {
                block,
                weights_begin: tile_words,
            });
            tile_words += stored[block].groups * TILE_ROWS;
        }
        let tiles = rows.div_ceil(TILE_ROWS);
        let mut own = Self {
            rows,
            blocks,
            stored,
            terms,
            tile_words,
            weights: vec![0; tiles * tile_words],
            scales: Vec::with_capacity(tiles * TILE_ROWS),
            starts: Vec::with_capacity(tiles * TILE_ROWS),
        };
        for tile in 0..tiles {
            for term in 0..own.terms.len() {
                for row in 0..TILE_ROWS {
                    own.pack(values, tile, term, row);
                }
            }
        }
        Ok(own)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How columns are cut.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    fn pack(&mut self, values: &[f32], tile: usize, term: usize, row: usize) {
        let block = self.stored[self.terms[term].block];
        let index = tile * TILE_ROWS + row;
        let mut numbers: Vec<f32> = match index < self.rows {
            true => values[index * self.blocks.count + block.begin..][..block.count].to_vec(),
            false => vec![0.0; block.count],
        };
        let mut scale = scale_of(&numbers);
        if self.blocks.fine > 0 && term == 2 {
            let first = scale;
            numbers
                .iter_mut()
                .for_each(|value| *value -= rounded(*value, first) * first);
            scale = scale_of(&numbers);
        }
        let mut sum = 0;
        for (group, four) in numbers.chunks(GROUP).enumerate() {
            let mut bytes = [0_u8; GROUP];
            for (byte, value) in bytes.iter_mut().zip(four) {
                let number = rounded(*value, scale) as i8;
                sum += i32::from(number);
                *byte = number as u8;
            }
            let at = tile * self.tile_words + self.terms[term].weights_begin + group * TILE_ROWS + row;
            self.weights[at] = u32::from_le_bytes(bytes);
        }
        self.scales.push(scale);
        self.starts.push(-128 * sum);
    }
}

fn scale_of(values: &[f32]) -> f32 {
    values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs())) / LARGEST
}

fn rounded(value: f32, scale: f32) -> f32 {
    if scale > 0.0 {
        (value / scale).round_ties_even().clamp(-LARGEST, LARGEST)
    } else {
        0.0
    }
}

/// Columns in 8 bits. Empty until begun.
#[derive(Default)]
pub struct Columns8 {
    tokens: usize,
    blocks: Vec<Block>,
    /// Groups of four of a token.
    pub(super) groups: usize,
    pub(super) content: Vec<u32>,
    /// `[blocks][stride]`.
    pub(super) scales: AlignedF32,
}

impl Columns8 {
    /// Makes room for columns that a matrix can be multiplied with; every range of its blocks must be filled then.
    pub fn begin(&mut self, blocks: &Blocks, tokens: usize) {
        self.tokens = tokens;
        self.blocks = blocks.stored();
        self.groups = self.blocks.iter().map(|block| block.groups).sum();
        self.content.resize(self.groups * column_stride(tokens), 0);
        self.scales.resize(self.blocks.len() * column_stride(tokens));
    }

    /// Fills in range `index` of [`Blocks::ranges`] with `(columns - centres) · factors`, `columns` being `[count][stride]`, all finite.
    ///
    /// # Errors
    /// [`KernelError::ShapeMismatch`].
    pub fn fill(
        &mut self,
        isa: Isa,
        index: usize,
        columns: &[f32],
        centres: &[f32],
        factors: &[f32],
    ) -> Result<(), KernelError> {
        let fine = self.blocks.len() > 1 && self.blocks[0].begin == self.blocks[1].begin;
        let place = if fine && index > 0 { index + 1 } else { index };
        let block = self.blocks.get(place).copied().ok_or(KernelError::ShapeMismatch {
            what: "block",
            expected: self.blocks.len(),
            actual: index,
        })?;
        expect_len("columns", block.count * column_stride(self.tokens), columns.len())?;
        expect_len("centres", block.count, centres.len())?;
        expect_len("factors", block.count, factors.len())?;
        let rest = (fine && index == 0).then(|| (self.blocks[1].group_begin, 1));
        isa.run(Fill {
            own: self,
            place,
            block,
            rest,
            columns,
            centres,
            factors,
        });
        Ok(())
    }

    /// Where group 0 of vector `vector` of tokens lies, and how far apart its groups are.
    #[inline(always)]
    pub(super) fn place(&self, vector: usize) -> (usize, usize) {
        let vectors = column_stride(self.tokens) / LANES;
        let first = vector / TILE_VECTORS * TILE_VECTORS;
        let beside = (vectors - first).min(TILE_VECTORS);
        (first * self.groups * LANES + (vector - first) * LANES, beside * LANES)
    }
}

struct Fill<'a> {
    own: &'a mut Columns8,
    place: usize,
    block: Block,
    /// First group and scales' place of what rounding leaves over.
    rest: Option<(usize, usize)>,
    columns: &'a [f32],
    centres: &'a [f32],
    factors: &'a [f32],
}

impl Kernel for Fill<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let stride = column_stride(self.own.tokens);
        let (rounder, zero) = (s.splat(ROUNDER), s.splat(128.0));
        for vector in 0..stride / LANES {
            let token = vector * LANES;
            let mut largest = s.splat(0.0);
            for index in 0..self.block.count {
                let x = self.number(s, index, token);
                largest = s.max(s.max(x, s.sub(s.splat(0.0), x)), largest);
            }
            let scale = s.mul(largest, s.splat(1.0 / LARGEST));
            // Where all are 0 the inverse is finite, and they stay 0.
            let inverse = s.div(s.splat(1.0), s.max(scale, s.splat(f32::MIN_POSITIVE)));
            let (rest_scale, rest_inverse) = (s.mul(scale, s.splat(0.5 / LARGEST)), s.splat(2.0 * LARGEST));
            super::columns::store(s, scale, &mut self.own.scales[self.place * stride + token..]);
            if let Some((_, place)) = self.rest {
                super::columns::store(s, rest_scale, &mut self.own.scales[place * stride + token..]);
            }
            let (begin, apart) = self.own.place(vector);
            for group in 0..self.block.groups {
                let (mut bytes, mut rest_bytes) = ([[128; LANES]; GROUP], [[128; LANES]; GROUP]);
                for i in 0..GROUP.min(self.block.count - group * GROUP) {
                    let steps = s.mul(self.number(s, group * GROUP + i, token), inverse);
                    let whole = s.sub(s.add(steps, rounder), rounder);
                    s.store_u8(s.add(whole, zero), &mut bytes[i]);
                    if self.rest.is_some() {
                        let left = s.mul(s.sub(steps, whole), rest_inverse);
                        let left = s.sub(s.add(left, rounder), rounder);
                        s.store_u8(s.add(left, zero), &mut rest_bytes[i]);
                    }
                }
                let at = begin + (self.block.group_begin + group) * apart;
                put(&bytes, &mut self.own.content[at..at + LANES]);
                if let Some((first, _)) = self.rest {
                    let at = begin + (first + group) * apart;
                    put(&rest_bytes, &mut self.own.content[at..at + LANES]);
                }
            }
        }
    }
}

impl Fill<'_> {
    /// Number `index` of the 16 tokens from `token`.
    #[inline(always)]
    fn number<S: Simd>(&self, s: S, index: usize, token: usize) -> S::F {
        let x = super::columns::load(s, &self.columns[index * column_stride(self.own.tokens) + token..]);
        s.mul(s.sub(x, s.splat(self.centres[index])), s.splat(self.factors[index]))
    }
}

/// Four numbers of each token side by side.
#[inline(always)]
fn put(bytes: &[[u8; LANES]; GROUP], to: &mut [u32]) {
    for (lane, to) in to.iter_mut().enumerate() {
        *to = u32::from_le_bytes([bytes[0][lane], bytes[1][lane], bytes[2][lane], bytes[3][lane]]);
    }
}

/// Writes `offsets[row] + matrix · columns`, `[rows][stride]`. The columns were begun with the matrix's blocks.
///
/// # Errors
/// [`KernelError::ShapeMismatch`].
pub fn multiply8(
    isa: Isa,
    matrix: &Matrix8,
    columns: &Columns8,
    offsets: &[f32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    let stride = column_stride(columns.tokens);
    expect_len("offsets", matrix.rows, offsets.len())?;
    expect_len("product", matrix.rows * stride, out.len())?;
    if matrix.stored != columns.blocks {
        return Err(KernelError::ShapeMismatch {
            what: "blocks",
            expected: matrix.stored.len(),
            actual: columns.blocks.len(),
        });
    }
    for (tile, (out, offsets)) in out
        .chunks_mut(TILE_ROWS * stride)
        .zip(offsets.chunks(TILE_ROWS))
        .enumerate()
    {
        for (row, offset) in out.chunks_exact_mut(stride).zip(offsets) {
            row.fill(*offset);
        }
        match isa.has_avx512() {
            // SAFETY: the instruction set says that the processor has the features.
            #[cfg(target_arch = "x86_64")]
            true => unsafe { super::matrix8_avx512::multiply(matrix, columns, tile, stride, out) },
            _ => isa.run(Multiply {
                matrix,
                columns,
                tile,
                stride,
                out,
            }),
        }
    }
    Ok(())
}

/// One tile of rows, without wide registers.
struct Multiply<'a> {
    matrix: &'a Matrix8,
    columns: &'a Columns8,
    tile: usize,
    stride: usize,
    out: &'a mut [f32],
}

impl Kernel for Multiply<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (matrix, columns) = (self.matrix, self.columns);
        let weights = &matrix.weights[self.tile * matrix.tile_words..][..matrix.tile_words];
        for (index, term) in matrix.terms.iter().enumerate() {
            let block = matrix.stored[term.block];
            for vector in 0..self.stride / LANES {
                let (begin, apart) = columns.place(vector);
                let token = vector * LANES;
                let scale = super::columns::load(s, &columns.scales[term.block * self.stride + token..]);
                for (row, out) in self.out.chunks_exact_mut(self.stride).enumerate() {
                    let at = (self.tile * matrix.terms.len() + index) * TILE_ROWS + row;
                    let mut sums = [matrix.starts[at]; LANES];
                    for group in 0..block.groups {
                        let w = weights[term.weights_begin + group * TILE_ROWS + row].to_le_bytes();
                        let x = &columns.content[begin + (block.group_begin + group) * apart..][..LANES];
                        for (sum, x) in sums.iter_mut().zip(x) {
                            for (x, w) in x.to_le_bytes().iter().zip(w) {
                                *sum += i32::from(*x) * i32::from(w as i8);
                            }
                        }
                    }
                    let sums = s.load(&sums.map(|sum| sum as f32));
                    let scale = s.mul(scale, s.splat(matrix.scales[at]));
                    let to = &mut out[token..];
                    let result = s.fma(sums, scale, super::columns::load(s, to));
                    super::columns::store(s, result, to);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
