//! How large everything is that is measured.

use kvasir_cuda::ops::PoolShape;
use kvasir_engine::synthetic;
use kvasir_model::ModelConfig;

/// Tokens of a block.
pub const BLOCK: usize = 32;

/// Sizes and repetitions of the measurements.
#[derive(Debug, Clone)]
pub struct Size {
    /// Of the model whose shapes kernels have.
    pub config: ModelConfig,
    /// Rows of kernels that go by rows.
    pub rows: Vec<usize>,
    /// Sequences that decode together, each with this context.
    pub batches: Vec<usize>,
    /// Context.
    pub context: usize,
    /// Tokens with which all of the largest batch begin, where they share.
    pub shared: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Bytes of the copy that tells the ceiling.
    pub copied: usize,
    /// Rows, columns and terms of the product that tells the other.
    pub multiplied: usize,
    /// Blocks that move to the host and back.
    pub moved: usize,
    /// Timed runs of a kernel, of which the median counts.
    pub runs: usize,
    /// Decode steps that are timed, after as many as [`Size::warm_up`].
    pub steps: usize,
    /// Decode steps before those.
    pub warm_up: usize,
}

impl Size {
    /// Llama-3-8B.
    pub fn llama_8b() -> Self {
        Self {
            config: shape("llama-8b"),
            rows: vec![1, 64, 8192],
            batches: vec![1, 64],
            context: 4096,
            shared: 2048,
            prompt: 8192,
            copied: 2 << 30,
            multiplied: 8192,
            moved: 128,
            runs: 15,
            steps: 50,
            warm_up: 8,
        }
    }

    /// What a simulation runs in seconds.
    pub fn tiny() -> Self {
        Self {
            config: shape("tiny"),
            rows: vec![1, 3],
            batches: vec![1, 3],
            context: 320,
            shared: 256,
            prompt: 33,
            copied: 1 << 14,
            multiplied: 32,
            moved: 2,
            runs: 1,
            steps: 3,
            warm_up: 2,
        }
    }

    /// Width of queries, keys and values together.
    pub fn qkv(&self) -> usize {
        (self.config.head_count + 2 * self.config.kv_head_count) * self.config.head_size
    }

    /// A pool of so many layers. One suffices for attention: the sequences of the largest batch are several times the L2.
    pub fn pool(&self, layer_count: usize) -> PoolShape {
        PoolShape {
            layer_count,
            kv_head_count: self.config.kv_head_count,
            head_size: self.config.head_size,
            block_size: BLOCK,
        }
    }
}

fn shape(name: &str) -> ModelConfig {
    let mut config = synthetic::config(name).unwrap_or_else(|| unreachable!("{name} is one of the shapes"));
    // A prompt of 8192 tokens, and steps after a context.
    config.context_length += 64;
    config
}
