//! Sizes of the model that speed is told for.

use kvasir_cuda::ops::PoolShape;

/// Llama-3-8B.
pub const HIDDEN: usize = 4096;
/// Width of the gated MLP.
pub const INTERMEDIATE: usize = 14_336;
/// Query heads.
pub const HEADS: usize = 32;
/// KV heads.
pub const KV_HEADS: usize = 8;
/// Elements of a head.
pub const HEAD_SIZE: usize = 128;
/// Vocabulary.
pub const VOCAB: usize = 128_256;
/// Layers of the whole model; the bench holds one pool layer and tells what a step of all would take.
pub const LAYERS: usize = 32;
/// Width of queries, keys and values together.
pub const QKV: usize = (HEADS + 2 * KV_HEADS) * HEAD_SIZE;

/// A pool of one layer, so that 64 sequences of 4k tokens are several times the L2.
pub const POOL: PoolShape = PoolShape {
    layer_count: 1,
    kv_head_count: KV_HEADS,
    head_size: HEAD_SIZE,
    block_size: 32,
};
