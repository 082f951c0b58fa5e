//! One launcher for each kernel: checks sizes, chooses the grid, puts the arguments together.

mod attention;
mod elementwise;
mod gemm;
mod kv;
mod penalties;
mod restrict;
mod rope;
mod sampling;

pub use attention::{
    Attention, AttentionTile, Combine, HEAD_SIZES, KEYS, attention_combine, attention_decode, attention_rows,
    has_head_size,
};
pub use elementwise::{Activation, RmsNorm, add_bias, embedding, gated, rmsnorm};
pub use gemm::{Gemm, GemmShape, gemm};
pub use kv::{Copy, Deviation, KvPiece, Relocate, kv_copy, kv_deviation, relocate};
pub use penalties::{LogitEdit, PenaltyRow, SeenToken, edit_logits, forget_seen, note_seen, penalties};
pub use restrict::{chosen_tokens, copy_rows, mask_rows};
pub use rope::{RopeTable, RotateAndStore, rope_table, rotate_and_store};
pub use sampling::{LogprobRow, LogprobToken, Logprobs, SampleRow, TOP_MAX, logprobs, sample};

use crate::args::Args;
use crate::device::DeviceError;

/// Sizes of the paged pool, whose elements are bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShape {
    /// Transformer layers.
    pub layer_count: usize,
    /// KV heads per layer.
    pub kv_head_count: usize,
    /// Elements per head.
    pub head_size: usize,
    /// Tokens per block.
    pub block_size: usize,
}

impl PoolShape {
    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.layer_count * 2 * self.kv_head_count * self.block_size * self.head_size * 2
    }
}

impl Args {
    fn pool_shape(self, shape: &PoolShape) -> Self {
        self.count(shape.layer_count)
            .count(shape.kv_head_count)
            .count(shape.head_size)
            .count(shape.block_size)
    }
}

fn grid(x: usize, y: usize) -> [u32; 3] {
    [
        u32::try_from(x).unwrap_or(u32::MAX),
        u32::try_from(y).unwrap_or(u32::MAX),
        1,
    ]
}

/// A grid's second dimension ends here, so launchers over rows cut them into pieces.
pub(crate) const ROWS_PER_LAUNCH: usize = 65_535;

fn multiple_of(what: &'static str, value: usize, of: usize, allowed: &'static str) -> Result<(), DeviceError> {
    if value > 0 && value.is_multiple_of(of) {
        Ok(())
    } else {
        Err(DeviceError::Unsupported { what, value, allowed })
    }
}
