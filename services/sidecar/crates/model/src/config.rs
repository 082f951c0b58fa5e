//! The facts of a model that its weights' shapes and its arithmetic follow from.

use crate::RopeConfig;

/// A dense decoder: norms before attention and MLP, rotary positions, a gated MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family by its name in the files: `llama`, `qwen2`, …
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub layer_count: usize,
    /// Query heads; a multiple of `kv_head_count`.
    pub head_count: usize,
    /// Key and value heads.
    pub kv_head_count: usize,
    /// Elements per head; even.
    pub head_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Largest position + 1. A model whose attention slides over a window is run up to the window, where both are the same.
    pub context_length: usize,
    /// Added to the mean square in each norm.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// What layers have beside Llama's.
    pub options: LayerOptions,
    /// Whether the output matrix is the embedding.
    pub tied_embeddings: bool,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Token that begins one.
    pub bos_token_id: Option<u32>,
}

/// What layers have beside or instead of Llama's; the default is Llama itself.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerOptions {
    /// Whether query, key and value projections add a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output projection does.
    pub attention_output_bias: bool,
    /// Whether each head's queries and keys are normed before rotation.
    pub head_norms: bool,
    /// Of the gated MLP.
    pub activation: Activation,
    /// What embeddings are multiplied with.
    pub embedding_scale: f32,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self {
            qkv_bias: false,
            attention_output_bias: false,
            head_norms: false,
            activation: Activation::Silu,
            embedding_scale: 1.0,
        }
    }
}

/// `act` in the gated MLP `down(act(gate(x)) · up(x))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// Bounds that no model in use comes near: they keep hostile numbers from overflowing products or asking for huge memory.
pub(crate) const SIZE_MAX: usize = 1 << 24;
/// See [`SIZE_MAX`].
pub(crate) const LAYERS_MAX: usize = 4096;

impl ModelConfig {
    /// What is wrong with the numbers, as (key, found, expected) in our names.
    pub(crate) fn contradiction(&self) -> Option<(&'static str, String, String)> {
        let sizes: [(&'static str, usize); 8] = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.head_count),
            ("num_key_value_heads", self.kv_head_count),
            ("head_dim", self.head_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.context_length),
            ("num_hidden_layers", self.layer_count),
        ];
        for (key, value) in sizes {
            let max = if key == "num_hidden_layers" {
                LAYERS_MAX
            } else {
                SIZE_MAX
            };
            if value == 0 || value > max {
                return Some((key, format!("is {value}"), format!("1 to {max}")));
            }
        }
        if !self.head_count.is_multiple_of(self.kv_head_count) {
            let expected = format!("a divisor of num_attention_heads {}", self.head_count);
            return Some(("num_key_value_heads", format!("is {}", self.kv_head_count), expected));
        }
        if !self.head_size.is_multiple_of(2) || self.head_count * self.head_size > SIZE_MAX {
            return Some(("head_dim", format!("is {}", self.head_size), "an even number".into()));
        }
        if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps < 1.0) {
            return Some((
                "rms_norm_eps",
                format!("is {}", self.rms_norm_eps),
                "0 or more, and less than 1".into(),
            ));
        }
        self.rope.contradiction(self.head_size)
    }
}
