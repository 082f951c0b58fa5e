//! How the tokens of a pull are cut into pieces and frames, and which of them have travelled.
//!
//! ```text
//!              piece 0   piece 1   piece 2   piece 3        pieces: cut at the smaller block size of both sides
//!   layer 0   ┌─────────────────┬───────────────────┐
//!   layer 1   │     frame 0     │      frame 1      │      a frame: some pieces × some layers, at most FRAME_BYTES of data
//!   layer 2   ├─────────┬───────┴─────────┬─────────┤      (or one layer of one piece)
//!   layer 3   │ frame 2 │     frame 3     │ frame 4 │
//!             └─────────┴─────────────────┴─────────┘
//! ```

use std::ops::Range;

use kvasir_codec::{LEVEL_RAW, TOKENS_MAX};

use crate::levels::Levels;

/// Data of one frame, at most, before it is encoded: large enough that per-message costs vanish, small enough to start early and to keep buffers small.
pub const FRAME_BYTES: usize = 256 << 10;

/// Data for which a frame leaves before the last layer of its tokens is computed. Larger: fewer messages while a prompt is computed; smaller:
/// less is left to send when it is done.
const EARLY_FRAME_BYTES: usize = 64 << 10;

/// The pieces of a token range. A piece lies in one block on either side, since the smaller block size divides the larger one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    tokens: Range<u32>,
    size: u32,
}

impl Pieces {
    /// `tokens` begins at a multiple of the smaller block size; it is not empty.
    pub fn new(tokens: Range<u32>, source_block_size: u32, sink_block_size: u32) -> Self {
        Self {
            tokens,
            size: source_block_size.min(sink_block_size),
        }
    }

    /// Number of pieces.
    pub fn count(&self) -> usize {
        self.tokens.len().div_ceil(self.size as usize)
    }

    /// Tokens of some pieces.
    pub fn tokens(&self, pieces: Range<usize>) -> Range<u32> {
        self.begin(pieces.start)..self.begin(pieces.end)
    }

    /// Tokens of each of some pieces.
    pub fn counts(&self, pieces: Range<usize>) -> Vec<usize> {
        pieces.map(|piece| self.tokens(piece..piece + 1).len()).collect()
    }

    /// The pieces that tokens consist of; None when they do not begin and end where pieces do.
    pub fn of(&self, tokens: Range<u32>) -> Option<Range<usize>> {
        if tokens.start < self.tokens.start || tokens.end > self.tokens.end || tokens.is_empty() {
            return None;
        }
        let index = |token: u32| (token - self.tokens.start).div_ceil(self.size) as usize;
        let pieces = index(tokens.start)..index(tokens.end);
        (self.tokens(pieces.clone()) == tokens).then_some(pieces)
    }

    /// First token of a piece, or the end of the range.
    fn begin(&self, piece: usize) -> u32 {
        (u64::from(self.tokens.start) + piece as u64 * u64::from(self.size)).min(u64::from(self.tokens.end)) as u32
    }
}

/// Where a piece's tokens lie in a block table: index of the block, tokens within.
pub fn within_block(tokens: &Range<u32>, block_size: u32) -> (usize, Range<u32>) {
    let begin = tokens.start % block_size;
    ((tokens.start / block_size) as usize, begin..begin + tokens.len() as u32)
}

/// Some pieces in some layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameRange {
    /// Consecutive pieces.
    pub pieces: Range<usize>,
    /// Consecutive layers.
    pub layers: Range<u32>,
}

/// What has travelled: of each piece the layers before some layer. The source chooses by it what to send next, the sink checks with it that
/// everything comes once.
#[derive(Debug, Clone)]
pub struct Coverage {
    pieces: Pieces,
    layers: Range<u32>,
    /// Of each piece, the first layer that has not travelled.
    next_layers: Vec<u32>,
    /// Pieces from the front of which everything has.
    done: usize,
}

impl Coverage {
    /// Nothing of the pieces in these layers.
    pub fn new(pieces: Pieces, layers: Range<u32>) -> Self {
        Self {
            next_layers: vec![layers.start; pieces.count()],
            pieces,
            layers,
            done: 0,
        }
    }

    /// The pieces.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// Tokens up to here have travelled in all layers.
    pub fn token_end(&self) -> u32 {
        self.pieces.begin(self.done)
    }

    /// Whether nothing is left.
    pub fn is_complete(&self) -> bool {
        self.done == self.next_layers.len()
    }

    /// Marks a frame as travelled.
    ///
    /// # Errors
    /// The layer that was next for a piece where the frame begins with another one, or ends beyond the last.
    pub fn take(&mut self, frame: &FrameRange) -> Result<(), u32> {
        let next = &mut self.next_layers[frame.pieces.clone()];
        if let Some(other) = next.iter().find(|next| **next != frame.layers.start) {
            return Err(*other);
        }
        if frame.layers.is_empty() || frame.layers.end > self.layers.end {
            return Err(frame.layers.start);
        }
        next.fill(frame.layers.end);
        while self.next_layers.get(self.done) == Some(&self.layers.end) {
            self.done += 1;
        }
        Ok(())
    }

    /// What to send next. Tokens up to an end are computed in the layers before some layer, which `ready` tells for the tokens of a piece; a
    /// token takes `token_layer_bytes` in a layer. None until there is something worth a frame. A frame is of one level, and of as many layers
    /// as that codes together, or some times as many.
    pub fn next_frame(
        &self,
        ready: impl Fn(&Range<u32>) -> u32,
        token_layer_bytes: usize,
        levels: &Levels,
    ) -> Option<FrameRange> {
        let state = |piece: usize| {
            let tokens = self.pieces.tokens(piece..piece + 1);
            let level = levels.of(&tokens).unwrap_or(LEVEL_RAW);
            let each = levels.layers_each(level);
            let end = match ready(&tokens).min(self.layers.end) {
                all if all == self.layers.end => all,
                some => some - some % each,
            };
            (self.next_layers[piece]..end, tokens.len() * token_layer_bytes, level)
        };
        for piece in self.done..self.next_layers.len() {
            let (mut layers, layer_bytes, level) = state(piece);
            if layers.is_empty() {
                continue;
            }
            let each = levels.layers_each(level);
            let most = (FRAME_BYTES / layer_bytes.max(1)) as u32 / each * each;
            layers.end = layers.end.min(layers.start.saturating_add(most.max(each)));
            let mut pieces = piece..piece + 1;
            let mut bytes = layers.len() * layer_bytes;
            while pieces.end < self.next_layers.len() {
                let (next, layer_bytes, own_level) = state(pieces.end);
                let more = layers.len() * layer_bytes;
                let is_other = own_level != level || next.start != layers.start || next.end < layers.end;
                let is_full = bytes + more > FRAME_BYTES
                    || level != LEVEL_RAW && self.pieces.tokens(piece..pieces.end + 1).len() > TOKENS_MAX;
                if is_other || is_full {
                    break;
                }
                bytes += more;
                pieces.end += 1;
            }
            if layers.end == self.layers.end || bytes >= EARLY_FRAME_BYTES {
                return Some(FrameRange { pieces, layers });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pieces_lie_in_one_block_on_either_side() {
        let pieces = Pieces::new(48..150, 64, 16);
        assert_eq!(pieces.count(), 7);
        assert_eq!((pieces.tokens(0..1), pieces.tokens(6..7)), (48..64, 144..150));
        assert_eq!(within_block(&(48..64), 64), (0, 48..64));
        assert_eq!(within_block(&(144..150), 16), (9, 0..6));
        assert_eq!(pieces.of(64..150), Some(1..7));
        assert_eq!(pieces.of(48..64), Some(0..1));
        for wrong in [48..60, 50..64, 32..64, 144..151, 64..64] {
            assert_eq!(pieces.of(wrong.clone()), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_long_prompt_leaves_a_layer_at_a_time_and_a_short_one_when_it_is_done() {
        // 1 KiB for a token in a layer: 16 tokens are 16 KiB.
        let sent = Coverage::new(Pieces::new(0..512, 16, 32), 0..30);
        let first = sent
            .next_frame(|tokens| u32::from(tokens.end <= 512), 1024, &Levels::raw())
            .unwrap();
        assert_eq!((first.pieces, first.layers), (0..16, 0..1));
        let short = Coverage::new(Pieces::new(0..40, 16, 32), 0..30);
        assert_eq!(short.next_frame(|_| 1, 1024, &Levels::raw()), None);
        let two = short.next_frame(|_| 2, 1024, &Levels::raw()).unwrap();
        assert_eq!((two.pieces, two.layers), (0..3, 0..2));
        let done = short.next_frame(|_| 30, 1024, &Levels::raw()).unwrap();
        assert_eq!((done.pieces, done.layers), (0..1, 0..16));
        assert_eq!(
            short.next_frame(|tokens| if tokens.end <= 16 { 0 } else { 1 }, 1024, &Levels::raw()),
            None
        );
    }

    #[test]
    fn a_frame_twice_or_out_of_turn_is_refused_with_the_layer_that_was_next() {
        let mut arrived = Coverage::new(Pieces::new(0..40, 16, 16), 0..4);
        let frame = |pieces: Range<usize>, layers: Range<u32>| FrameRange { pieces, layers };
        assert_eq!(arrived.take(&frame(0..2, 0..3)), Ok(()));
        assert_eq!(arrived.take(&frame(1..3, 3..4)), Err(0));
        assert_eq!(arrived.take(&frame(0..1, 0..3)), Err(3));
        assert_eq!(arrived.take(&frame(0..1, 3..5)), Err(3));
        assert_eq!(arrived.take(&frame(1..2, 3..4)), Ok(()));
        assert_eq!(arrived.token_end(), 0);
        assert_eq!(arrived.take(&frame(0..1, 3..4)), Ok(()));
        assert_eq!((arrived.token_end(), arrived.is_complete()), (32, false));
        assert_eq!(arrived.take(&frame(2..3, 0..4)), Ok(()));
        assert_eq!((arrived.token_end(), arrived.is_complete()), (40, true));
    }

    proptest! {
        #[test]
        fn every_token_and_layer_travels_once_however_the_engine_proceeds(
            begin in 0u32..10, length in 1u32..300, sizes in (0usize..3, 0usize..3), layer_count in 1u32..6,
            token_layer_bytes in prop_oneof![Just(64usize), Just(3_000), Just(20_000)],
            chunks in prop::collection::vec(1u32..120, 1..8), cut in 0u32..310,
        ) {
            let blocks = [16, 32, 64];
            let (source, sink) = (blocks[sizes.0], blocks[sizes.1]);
            let begin = begin * source.min(sink);
            let end = begin + length;
            let pieces = Pieces::new(begin..end, source, sink);
            // Some tokens lossless, the others at a level that codes three layers together.
            let cut = (begin + cut).next_multiple_of(source.min(sink)).min(end);
            let spans = [(cut, 1), (end, 2)].into_iter().filter(|(until, _)| *until > begin).collect();
            let levels = Levels::of_profile(spans, kvasir_codec::ProfileId([1; 16]), vec![1, 1, 3]);
            let (mut sent, mut arrived) = (Coverage::new(pieces.clone(), 0..layer_count), Coverage::new(pieces, 0..layer_count));
            let mut travelled = vec![0; (length * layer_count) as usize];
            let mut computed = 0;
            for chunk in chunks.into_iter().chain([end]) {
                let chunk_end = (computed + chunk).min(end);
                for layers in 1..=layer_count {
                    let ready = |tokens: &Range<u32>| match tokens.end {
                        end if end <= computed => layer_count,
                        end if end <= chunk_end => layers,
                        _ => 0,
                    };
                    while let Some(frame) = sent.next_frame(ready, token_layer_bytes, &levels) {
                        let tokens = sent.pieces().tokens(frame.pieces.clone());
                        let bytes = tokens.len() * frame.layers.len() * token_layer_bytes;
                        let level = levels.of(&tokens);
                        prop_assert!(level.is_some(), "a frame of two levels");
                        let each = levels.layers_each(level.unwrap());
                        let is_whole = |layer: u32| layer.is_multiple_of(each) || layer == layer_count;
                        prop_assert!(is_whole(frame.layers.start) && is_whole(frame.layers.end));
                        let is_least = frame.layers.len() <= each as usize && frame.pieces.len() == 1;
                        prop_assert!(bytes <= FRAME_BYTES || is_least);
                        prop_assert!(tokens.end <= computed || tokens.end <= chunk_end && frame.layers.end <= layers);
                        prop_assert_eq!(arrived.pieces().of(tokens.clone()), Some(frame.pieces.clone()));
                        sent.take(&frame).unwrap();
                        arrived.take(&frame).unwrap();
                        for (token, layer) in tokens.flat_map(|token| frame.layers.clone().map(move |layer| (token, layer))) {
                            travelled[((token - begin) * layer_count + layer) as usize] += 1;
                        }
                    }
                }
                computed = chunk_end;
            }
            prop_assert!(sent.is_complete() && arrived.is_complete() && arrived.token_end() == end);
            prop_assert!(travelled.iter().all(|times| *times == 1));
        }
    }
}
