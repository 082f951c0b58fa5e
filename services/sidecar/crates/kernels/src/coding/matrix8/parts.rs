//! A matrix of 8 bits taken apart, for whoever lays it out otherwise: a device.

use super::{Matrix8, TILE_ROWS};
use std::ops::Range;

/// A row's numbers in one term.
pub struct RowTerm {
    /// Signed bytes, those of the block and up to three zeros.
    pub weights: Vec<u8>,
    /// What an integer sum is multiplied with.
    pub scale: f32,
    /// What a sum begins with: bytes of 128 for 0 add too much.
    pub start: i32,
}

impl Matrix8 {
    /// The blocks of columns as stored. One that is held finely is there twice, the second time for what its rounding left over.
    pub fn stored_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        self.stored.iter().map(|block| block.begin..block.begin + block.count)
    }

    /// Whether block 1 is what the rounding of block 0 left over.
    pub fn is_fine(&self) -> bool {
        self.blocks.fine > 0
    }

    /// The stored block of columns that each term multiplies, in the order in which products are added.
    pub fn term_blocks(&self) -> impl Iterator<Item = usize> {
        self.terms.iter().map(|term| term.block)
    }

    /// Row `row` of term `term`, both of which exist.
    pub fn row_term(&self, row: usize, term: usize) -> RowTerm {
        let (tile, in_tile) = (row / TILE_ROWS, row % TILE_ROWS);
        let words = &self.weights[tile * self.tile_words + self.terms[term].weights_begin..];
        let groups = self.stored[self.terms[term].block].groups;
        let words = (0..groups).map(|group| words[group * TILE_ROWS + in_tile]);
        let at = (tile * self.terms.len() + term) * TILE_ROWS + in_tile;
        RowTerm {
            weights: words.flat_map(u32::to_le_bytes).collect(),
            scale: self.scales[at],
            start: self.starts[at],
        }
    }
}
