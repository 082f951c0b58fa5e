//! The rows of one forward pass: which tokens of which sequences, and where their KV lies.

use crate::kv_shards::KvShards;

/// Consecutive tokens of one sequence. Row `i` of the span is position `start_position + i`.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// Position of the first token.
    pub start_position: usize,
    /// Number of tokens.
    pub token_count: usize,
    /// The sequence's blocks, in order, from position 0.
    pub blocks: &'a [u32],
}

/// Why spans cannot run together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The block table is too short.
    #[error("span {span} ends at position {end} but its {blocks} blocks of {block_size} tokens hold fewer")]
    MissingBlocks {
        /// Index of the span.
        span: usize,
        /// One past its last position.
        end: usize,
        /// Blocks it has.
        blocks: usize,
        /// Tokens per block.
        block_size: usize,
    },
    /// A block id beyond the pool.
    #[error("span {span} names block {block}; the pool has {block_count}")]
    UnknownBlock {
        /// Index of the span.
        span: usize,
        /// Block named.
        block: u32,
        /// Blocks there are.
        block_count: u32,
    },
    /// Two places of the batch would write one block.
    #[error("block {block} would be written by two sequences, or at two places of one")]
    BlockWrittenTwice {
        /// The block.
        block: u32,
    },
    /// A span without tokens.
    #[error("span {span} has no tokens")]
    EmptySpan {
        /// Index of the span.
        span: usize,
    },
}

/// Spans that were checked against a pool: every position has a block, every block exists, and no block is written from two places, so
/// that rows may store their KV in parallel.
pub struct Batch<'a> {
    spans: Vec<Span<'a>>,
    row_begins: Vec<usize>,
    rows: usize,
    pub(crate) tiles: Vec<RowTile>,
}

/// Rows of one span that share the loads of a key tile.
#[derive(Clone, Copy)]
pub(crate) struct RowTile {
    pub(crate) span: usize,
    /// First row, counted in the batch.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// Position of the first row.
    pub(crate) position: usize,
}

/// More rows share a loaded key tile better; fewer keep their sums in the first-level cache and divide evenly over threads.
const TILE_ROWS: usize = 16;

impl<'a> Batch<'a> {
    /// Checks `spans` against `pool`. Rows are numbered through the spans in their order.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub fn new(pool: &KvShards, spans: Vec<Span<'a>>) -> Result<Self, BatchError> {
        let block_size = pool.shape().block_size;
        let block_count = pool.block_count();
        let (mut row_begins, mut tiles, mut written, mut rows) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (index, span) in spans.iter().enumerate() {
            if span.token_count == 0 {
                return Err(BatchError::EmptySpan { span: index });
            }
            let end = span.start_position + span.token_count;
            let blocks = span.blocks;
            let Some(used) = blocks.get(..end.div_ceil(block_size)) else {
                return Err(BatchError::MissingBlocks {
                    span: index,
                    end,
                    blocks: blocks.len(),
                    block_size,
                });
            };
            if let Some(block) = used.iter().find(|block| **block >= block_count) {
                return Err(BatchError::UnknownBlock {
                    span: index,
                    block: *block,
                    block_count,
                });
            }
            written.extend_from_slice(&used[span.start_position / block_size..]);
            for row in (0..span.token_count).step_by(TILE_ROWS) {
                let tile_rows = TILE_ROWS.min(span.token_count - row);
                tiles.push(RowTile {
                    span: index,
                    row: rows + row,
                    rows: tile_rows,
                    position: span.start_position + row,
                });
            }
            row_begins.push(rows);
            rows += span.token_count;
        }
        written.sort_unstable();
        if let Some(pair) = written.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(BatchError::BlockWrittenTwice { block: pair[0] });
        }
        // Longest first, so that threads end together.
        tiles.sort_by_key(|tile| std::cmp::Reverse((tile.position + tile.rows) * tile.rows));
        Ok(Self {
            spans,
            row_begins,
            rows,
            tiles,
        })
    }

    /// The spans.
    pub fn spans(&self) -> &[Span<'a>] {
        &self.spans
    }

    /// Rows over all spans.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The span and the position of a row.
    pub(crate) fn locate(&self, row: usize) -> (&Span<'a>, usize) {
        let index = self.row_begins.partition_point(|begin| *begin <= row) - 1;
        let span = &self.spans[index];
        (span, span.start_position + row - self.row_begins[index])
    }
}
