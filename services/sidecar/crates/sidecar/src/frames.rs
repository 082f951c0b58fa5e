//! How a token range is cut into frames.

use std::ops::Range;

/// Data of one frame, roughly: large enough that per-message costs vanish, small enough to start early and to keep buffers small.
pub const FRAME_BYTES: usize = 256 << 10;

/// KV of some tokens of one block in some layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameRange {
    /// Index into the sequence's block table.
    pub block_index: usize,
    /// Tokens within the block.
    pub tokens: Range<u32>,
    /// Layers.
    pub layers: Range<u32>,
    /// Position of the first token in the prompt.
    pub token_begin: u32,
}

/// Sizes that cutting depends on.
#[derive(Debug, Clone, Copy)]
pub struct FrameShape {
    /// Tokens per block.
    pub block_size: u32,
    /// Layers.
    pub layer_count: u32,
    /// Bytes of one token over all layers.
    pub bytes_per_token: usize,
}

impl FrameShape {
    /// End of the tokens that can be sent when `computed` are in place: whole blocks, and the last partial one only when it is complete.
    pub fn sendable_end(&self, computed: u32, range_end: u32) -> u32 {
        if computed >= range_end {
            range_end
        } else {
            computed - computed % self.block_size
        }
    }

    /// Frames of the block that holds token `begin`, up to `end`, in layer order.
    pub fn block_frames(&self, begin: u32, end: u32) -> impl Iterator<Item = FrameRange> + use<> {
        let block_index = (begin / self.block_size) as usize;
        let block_begin = begin - begin % self.block_size;
        let tokens = begin - block_begin..(end - block_begin).min(self.block_size);
        let layer_bytes = (self.bytes_per_token / self.layer_count as usize).max(1) * tokens.len();
        let layers_each = ((FRAME_BYTES / layer_bytes.max(1)) as u32).clamp(1, self.layer_count);
        let layer_count = self.layer_count;
        (0..layer_count)
            .step_by(layers_each as usize)
            .map(move |first| FrameRange {
                block_index,
                tokens: tokens.clone(),
                layers: first..(first + layers_each).min(layer_count),
                token_begin: begin,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_and_the_last_partial_one_are_sent() {
        let shape = FrameShape {
            block_size: 16,
            layer_count: 4,
            bytes_per_token: 64,
        };
        assert_eq!(shape.sendable_end(15, 40), 0);
        assert_eq!(shape.sendable_end(33, 40), 32);
        assert_eq!(shape.sendable_end(40, 40), 40);
    }

    #[test]
    fn frames_cover_a_block_once() {
        let shape = FrameShape {
            block_size: 32,
            layer_count: 30,
            bytes_per_token: 30 * 768,
        };
        let frames: Vec<FrameRange> = shape.block_frames(64, 90).collect();
        assert!(
            frames
                .iter()
                .all(|frame| frame.block_index == 2 && frame.tokens == (0..26))
        );
        assert_eq!(
            frames.iter().flat_map(|frame| frame.layers.clone()).collect::<Vec<_>>(),
            (0..30).collect::<Vec<_>>()
        );
        assert!(frames.iter().all(|frame| frame.layers.len() * 26 * 768 <= FRAME_BYTES));
    }
}
