//! What the kernels of one forward pass need to know of its rows: positions, places in the pool, and how attention is divided. Pure.

use crate::ops::{AttentionTile, KEYS};
use kvasir_kernels::Span;

/// Packed rows of a tile, for prompts and for decode.
const ROW_TILE: usize = 64;
const DECODE_TILE: usize = 16;

/// How attention is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    /// Keys of a partition of decode rows: larger, fewer partial sums to join; smaller, more warps for one long sequence. 0: one walk over all
    /// keys, whose bits are those that the row would have in a prompt.
    pub partition: usize,
    /// Whether decode rows that begin with the same blocks share a pass over those.
    pub shares_prefixes: bool,
}

impl Division {
    /// 256 keys: at 4k context 16 partitions a KV head, so that 8 KV heads of one sequence give 128 warps.
    pub const FAST: Self = Self {
        partition: 256,
        shares_prefixes: true,
    };
    /// The same bits whether a row came in a prompt or in decode.
    pub const DETERMINISTIC: Self = Self {
        partition: 0,
        shares_prefixes: false,
    };
}

/// Rows and tiles of one pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepRows {
    /// Position of each row.
    pub positions: Vec<u32>,
    /// block · block_size + token of each row.
    pub slots: Vec<u32>,
    /// Block tables, one span's after another's.
    pub tables: Vec<u32>,
    /// Row of each place: decode rows first, neighbours sharing what they can, then the others.
    pub rows: Vec<u32>,
    /// How many places are decode rows.
    pub decode_places: usize,
    /// Tiles of prompts, walked whole.
    pub row_tiles: Vec<AttentionTile>,
    /// Tiles of decode rows over keys that all of a tile's rows begin with.
    pub prefix_tiles: Vec<AttentionTile>,
    /// Partitions of the longest of those.
    pub prefix_slots: usize,
    /// Tiles of decode rows over the keys after that.
    pub decode_tiles: Vec<AttentionTile>,
    /// Partitions of the longest decode row.
    pub slot_count: usize,
}

/// Rows of decode whose launches are the same whatever the sequences are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecodeShape {
    /// Rows, padding included.
    pub rows: usize,
    /// Partitions of the longest context.
    pub slots: usize,
    /// Tiles over shared prefixes.
    pub prefix_tiles: usize,
}

/// Rows of a decode pass with padding: few sizes, so that few graphs are recorded, and at most 7 rows computed for nothing.
pub fn padded_rows(rows: usize) -> usize {
    if rows <= 4 {
        rows.next_power_of_two()
    } else {
        rows.next_multiple_of(8)
    }
}

impl StepRows {
    /// Rounds up what launches depend on: tiles without rows, and partitions that nothing lies in, end at once.
    pub fn pad(&mut self) -> DecodeShape {
        let empty = AttentionTile {
            table_begin: 0,
            row_begin: 0,
            packed_begin: 0,
            packed_count: 0,
            key_begin: 0,
            key_end: 0,
        };
        if !self.prefix_tiles.is_empty() {
            self.prefix_tiles
                .resize(self.prefix_tiles.len().next_power_of_two(), empty);
        }
        if self.slot_count > 0 {
            self.slot_count = self.slot_count.next_power_of_two();
        }
        DecodeShape {
            rows: self.positions.len(),
            slots: self.slot_count,
            prefix_tiles: self.prefix_tiles.len(),
        }
    }

    /// Divides the rows of checked spans; `group` is the number of query heads that share a KV head.
    pub fn new(spans: &[Span<'_>], block_size: usize, group: usize, division: Division) -> Self {
        let mut plan = Self::default();
        let mut placed = Vec::with_capacity(spans.len());
        for span in spans {
            let first_row = plan.positions.len();
            let used = &span.blocks[..(span.start_position + span.token_count).div_ceil(block_size)];
            placed.push(Placed {
                span,
                first_row,
                table_begin: plan.tables.len(),
                used,
            });
            plan.tables.extend_from_slice(used);
            for position in span.start_position..span.start_position + span.token_count {
                plan.positions.push(position as u32);
                plan.slots
                    .push(used[position / block_size] * block_size as u32 + (position % block_size) as u32);
            }
        }
        let is_decode =
            |placed: &Placed<'_>| placed.span.token_count == 1 || placed.span.token_count * group <= DECODE_TILE;
        let (mut decode, rest): (Vec<_>, Vec<_>) = placed.into_iter().partition(is_decode);
        if division.shares_prefixes && division.partition > 0 {
            // Sequences with the same beginning become neighbours; the row decides among equals, so that the order is one.
            decode.sort_by(|a, b| a.used.cmp(b.used).then(a.first_row.cmp(&b.first_row)));
            plan.place_sharing(&decode, block_size, group, division.partition);
        } else {
            for placed in &decode {
                plan.place_decode(placed, group, 0);
            }
        }
        plan.decode_places = plan.rows.len();
        if division.partition > 0 {
            let end = decode
                .iter()
                .map(|placed| placed.span.start_position + placed.span.token_count);
            plan.slot_count = end.max().unwrap_or(0).div_ceil(division.partition);
        }
        for placed in &rest {
            plan.place_rows(placed, group);
        }
        // Longest first, so that what runs last is short.
        plan.row_tiles
            .sort_by_key(|tile| std::cmp::Reverse((tile.key_end, tile.packed_count)));
        plan
    }

    /// Runs of decode rows whose tables begin alike, as long as a longer run saves more reading of keys.
    fn place_sharing(&mut self, decode: &[Placed<'_>], block_size: usize, group: usize, partition: usize) {
        let mut first = 0;
        while first < decode.len() {
            let (mut count, mut shared) = (1, usize::MAX);
            while let Some(next) = decode.get(first + count) {
                let common = decode[first].common(next, block_size, partition).min(shared);
                let (saved, now) = (
                    if shared == usize::MAX { 0 } else { (count - 1) * shared },
                    count * common,
                );
                if common == 0 || now < saved {
                    break;
                }
                (count, shared) = (count + 1, common);
            }
            let prefix = if count > 1 { shared * partition } else { 0 };
            let row_begin = self.rows.len();
            for placed in &decode[first..first + count] {
                self.place_decode(placed, group, prefix);
            }
            if prefix > 0 {
                self.prefix_slots = self.prefix_slots.max(shared);
                let packed = (self.rows.len() - row_begin) * group;
                self.prefix_tiles
                    .extend(cut(packed, ROW_TILE).map(|(packed_begin, packed_count)| AttentionTile {
                        table_begin: decode[first].table_begin as u32,
                        row_begin: row_begin as u32,
                        packed_begin,
                        packed_count,
                        key_begin: 0,
                        key_end: prefix as u32,
                    }));
            }
            first += count;
        }
    }

    fn place_decode(&mut self, placed: &Placed<'_>, group: usize, key_begin: usize) {
        let row_begin = self.rows.len() as u32;
        let end = placed.span.start_position + placed.span.token_count;
        self.rows.extend(placed.rows());
        let tiles = cut(placed.span.token_count * group, DECODE_TILE);
        self.decode_tiles
            .extend(tiles.map(|(packed_begin, packed_count)| AttentionTile {
                table_begin: placed.table_begin as u32,
                row_begin,
                packed_begin,
                packed_count,
                key_begin: key_begin as u32,
                key_end: end as u32,
            }));
    }

    fn place_rows(&mut self, placed: &Placed<'_>, group: usize) {
        let row_begin = self.rows.len() as u32;
        self.rows.extend(placed.rows());
        let tiles = cut(placed.span.token_count * group, ROW_TILE);
        self.row_tiles.extend(tiles.map(|(packed_begin, packed_count)| {
            let last_token = (packed_begin + packed_count - 1) as usize / group;
            AttentionTile {
                table_begin: placed.table_begin as u32,
                row_begin,
                packed_begin,
                packed_count,
                key_begin: 0,
                key_end: (placed.span.start_position + last_token + 1) as u32,
            }
        }));
    }
}

struct Placed<'a> {
    span: &'a Span<'a>,
    first_row: usize,
    table_begin: usize,
    used: &'a [u32],
}

impl Placed<'_> {
    fn rows(&self) -> impl Iterator<Item = u32> {
        self.first_row as u32..(self.first_row + self.span.token_count) as u32
    }

    /// Partitions before both sequences' own rows whose blocks are the same.
    fn common(&self, other: &Self, block_size: usize, partition: usize) -> usize {
        let blocks = self.used.iter().zip(other.used).take_while(|(a, b)| a == b).count();
        let keys = (blocks * block_size)
            .min(self.span.start_position)
            .min(other.span.start_position);
        keys / partition
    }
}

const _: () = assert!(Division::FAST.partition.is_multiple_of(KEYS));

/// Pieces `(begin, count)` of `total`, each of at most `size`.
fn cut(total: usize, size: usize) -> impl Iterator<Item = (u32, u32)> {
    (0..total)
        .step_by(size)
        .map(move |begin| (begin as u32, size.min(total - begin) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start_position: usize, token_count: usize, blocks: &[u32]) -> Span<'_> {
        Span {
            start_position,
            token_count,
            blocks,
        }
    }

    #[test]
    fn a_prompt_is_cut_into_tiles_that_end_at_their_last_position() {
        let plan = StepRows::new(&[span(10, 40, &[5, 2])], 32, 2, Division::FAST);
        let tile = |packed_begin, packed_count, key_end| AttentionTile {
            table_begin: 0,
            row_begin: 0,
            packed_begin,
            packed_count,
            key_begin: 0,
            key_end,
        };
        assert_eq!(plan.row_tiles, [tile(64, 16, 50), tile(0, 64, 42)]);
        assert_eq!(plan.positions, (10..50).collect::<Vec<_>>());
        assert_eq!((plan.slots[0], plan.slots[39]), (5 * 32 + 10, 2 * 32 + 17));
        assert_eq!(
            (plan.decode_places, plan.slot_count, &plan.tables[..]),
            (0, 0, &[5, 2][..])
        );
    }

    #[test]
    fn decode_rows_with_the_same_blocks_share_a_prefix_pass() {
        let spans = [
            span(600, 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 20]),
            span(10, 1, &[30]),
            span(700, 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 21, 22]),
        ];
        let plan = StepRows::new(&spans, 64, 4, Division::FAST);
        assert_eq!(plan.rows, [0, 2, 1]);
        assert_eq!((plan.prefix_tiles.len(), plan.prefix_slots, plan.slot_count), (1, 2, 3));
        assert_eq!(
            (plan.prefix_tiles[0].packed_count, plan.prefix_tiles[0].key_end),
            (8, 512)
        );
        let begins: Vec<u32> = plan.decode_tiles.iter().map(|tile| tile.key_begin).collect();
        assert_eq!(begins, [512, 512, 0]);
        let alone = StepRows::new(&spans, 64, 4, Division::DETERMINISTIC);
        assert_eq!(
            (alone.rows.as_slice(), alone.prefix_tiles.len(), alone.slot_count),
            (&[0, 1, 2][..], 0, 0)
        );
    }

    #[test]
    fn many_heads_of_one_token_make_several_tiles() {
        let plan = StepRows::new(&[span(3, 1, &[0])], 16, 24, Division::FAST);
        let counts: Vec<_> = plan
            .decode_tiles
            .iter()
            .map(|tile| (tile.packed_begin, tile.packed_count))
            .collect();
        assert_eq!(counts, [(0, 16), (16, 8)]);
    }
}
