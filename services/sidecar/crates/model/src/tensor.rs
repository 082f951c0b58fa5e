//! Tensors under one set of names, whatever file they come from.

use std::borrow::Cow;

use crate::config::{LayerOptions, ModelConfig};

/// Element format of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum TensorType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// GGUF: blocks of 32, an f16 scale and signed bytes.
    Q8_0,
    /// GGUF: blocks of 32, an f16 scale and nibbles minus 8.
    Q4_0,
    /// GGUF: blocks of 32, f16 scale and minimum, and nibbles.
    Q4_1,
    /// GGUF: blocks of 32, an f16 scale and 5-bit numbers minus 16.
    Q5_0,
    /// GGUF: blocks of 32, f16 scale and minimum, and 5-bit numbers.
    Q5_1,
    /// GGUF: blocks of 256 in 8 sub-blocks with 6-bit scales and minima, and nibbles.
    Q4_K,
    /// GGUF: the same with 5-bit numbers.
    Q5_K,
    /// GGUF: blocks of 256 in 16 sub-blocks with signed 8-bit scales, and 6-bit numbers minus 32.
    Q6_K,
}

impl TensorType {
    /// Elements that one unit of storage holds.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of one unit of storage.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// The type by its number in GGUF files, when it is one of these.
    pub fn from_ggml(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Bytes of a row of `cols` elements; None when the row is not whole units or the product overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }
}

/// A matrix `[rows][cols]`, or a vector (`rows` = 1), row-major, rows contiguous.
#[derive(Debug, Clone)]
pub struct Tensor<'a> {
    /// Name in the file.
    pub name: Cow<'a, str>,
    /// Element format.
    pub tensor_type: TensorType,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// `rows * row_bytes(cols)` bytes; owned when rows had to be permuted.
    pub bytes: Cow<'a, [u8]>,
}

/// Which weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorId {
    /// `[vocab][hidden]`.
    Embedding,
    /// `[hidden]`.
    OutputNorm,
    /// `[vocab][hidden]`; the embedding when tied.
    Output,
    /// One of a layer's.
    Layer {
        /// From 0.
        index: usize,
        /// Which.
        part: LayerTensor,
    },
}

/// Weights of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerTensor {
    /// `[hidden]`.
    AttentionNorm,
    /// `[heads * head_size][hidden]`.
    Query,
    /// `[kv_heads * head_size][hidden]`.
    Key,
    /// `[kv_heads * head_size][hidden]`.
    Value,
    /// `[hidden][heads * head_size]`.
    AttentionOutput,
    /// `[hidden]`.
    MlpNorm,
    /// `[intermediate][hidden]`.
    Gate,
    /// `[intermediate][hidden]`.
    Up,
    /// `[hidden][intermediate]`.
    Down,
    /// `[heads * head_size]`.
    QueryBias,
    /// `[kv_heads * head_size]`.
    KeyBias,
    /// `[kv_heads * head_size]`.
    ValueBias,
    /// `[hidden]`.
    AttentionOutputBias,
    /// `[head_size]`.
    QueryNorm,
    /// `[head_size]`.
    KeyNorm,
}

impl LayerTensor {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionOutput,
        Self::MlpNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::QueryBias,
        Self::KeyBias,
        Self::ValueBias,
        Self::AttentionOutputBias,
        Self::QueryNorm,
        Self::KeyNorm,
    ];

    /// Whether layers with these options have it.
    pub fn is_in(self, options: &LayerOptions) -> bool {
        match self {
            Self::QueryBias | Self::KeyBias | Self::ValueBias => options.qkv_bias,
            Self::AttentionOutputBias => options.attention_output_bias,
            Self::QueryNorm | Self::KeyNorm => options.head_norms,
            _ => true,
        }
    }

    /// Whether it scales normed values.
    pub(crate) fn is_norm(self) -> bool {
        matches!(
            self,
            Self::AttentionNorm | Self::MlpNorm | Self::QueryNorm | Self::KeyNorm
        )
    }
}

impl TensorId {
    /// Every weight that a model of this configuration has.
    pub fn all(config: &ModelConfig) -> impl Iterator<Item = Self> + use<> {
        let output = (!config.tied_embeddings).then_some(Self::Output);
        let parts: Vec<LayerTensor> = LayerTensor::ALL
            .into_iter()
            .filter(|part| part.is_in(&config.options))
            .collect();
        let layers = (0..config.layer_count)
            .flat_map(move |index| parts.clone().into_iter().map(move |part| Self::Layer { index, part }));
        [Self::Embedding, Self::OutputNorm]
            .into_iter()
            .chain(output)
            .chain(layers)
    }

    /// Whether it scales normed values.
    pub(crate) fn is_norm(self) -> bool {
        match self {
            Self::OutputNorm => true,
            Self::Layer { part, .. } => part.is_norm(),
            Self::Embedding | Self::Output => false,
        }
    }

    /// (rows, cols) by the configuration; vectors have one row.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let hidden = config.hidden_size;
        let (query, kv) = (
            config.head_count * config.head_size,
            config.kv_head_count * config.head_size,
        );
        match self {
            Self::Embedding | Self::Output => (config.vocab_size, hidden),
            Self::OutputNorm => (1, hidden),
            Self::Layer { part, .. } => match part {
                LayerTensor::AttentionNorm | LayerTensor::MlpNorm | LayerTensor::AttentionOutputBias => (1, hidden),
                LayerTensor::QueryNorm | LayerTensor::KeyNorm => (1, config.head_size),
                LayerTensor::QueryBias => (1, query),
                LayerTensor::KeyBias | LayerTensor::ValueBias => (1, kv),
                LayerTensor::Query => (query, hidden),
                LayerTensor::Key | LayerTensor::Value => (kv, hidden),
                LayerTensor::AttentionOutput => (hidden, query),
                LayerTensor::Gate | LayerTensor::Up => (config.intermediate_size, hidden),
                LayerTensor::Down => (hidden, config.intermediate_size),
            },
        }
    }
}
