//! Tensors under one set of names, whatever file they come from.

use std::borrow::Cow;

use crate::config::ModelConfig;

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
}

impl LayerTensor {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionOutput,
        Self::MlpNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// (name in Hugging Face files, name in GGUF files), both after the layer's prefix.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::AttentionNorm => ("input_layernorm", "attn_norm"),
            Self::Query => ("self_attn.q_proj", "attn_q"),
            Self::Key => ("self_attn.k_proj", "attn_k"),
            Self::Value => ("self_attn.v_proj", "attn_v"),
            Self::AttentionOutput => ("self_attn.o_proj", "attn_output"),
            Self::MlpNorm => ("post_attention_layernorm", "ffn_norm"),
            Self::Gate => ("mlp.gate_proj", "ffn_gate"),
            Self::Up => ("mlp.up_proj", "ffn_up"),
            Self::Down => ("mlp.down_proj", "ffn_down"),
        }
    }
}

impl TensorId {
    /// Every weight that a model of this configuration has.
    pub fn all(config: &ModelConfig) -> impl Iterator<Item = Self> + use<> {
        let output = (!config.tied_embeddings).then_some(Self::Output);
        let layers = (0..config.layer_count).flat_map(|index| {
            LayerTensor::ALL
                .into_iter()
                .map(move |part| Self::Layer { index, part })
        });
        [Self::Embedding, Self::OutputNorm]
            .into_iter()
            .chain(output)
            .chain(layers)
    }

    pub(crate) fn hugging_face_name(self) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::OutputNorm => "model.norm.weight".into(),
            Self::Output => "lm_head.weight".into(),
            Self::Layer { index, part } => format!("model.layers.{index}.{}.weight", part.names().0),
        }
    }

    pub(crate) fn gguf_name(self) -> String {
        match self {
            Self::Embedding => "token_embd.weight".into(),
            Self::OutputNorm => "output_norm.weight".into(),
            Self::Output => "output.weight".into(),
            Self::Layer { index, part } => format!("blk.{index}.{}.weight", part.names().1),
        }
    }

    /// (rows, cols) by the configuration; vectors have one row.
    pub(crate) fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let hidden = config.hidden_size;
        let (query, kv) = (
            config.head_count * config.head_size,
            config.kv_head_count * config.head_size,
        );
        match self {
            Self::Embedding | Self::Output => (config.vocab_size, hidden),
            Self::OutputNorm => (1, hidden),
            Self::Layer { part, .. } => match part {
                LayerTensor::AttentionNorm | LayerTensor::MlpNorm => (1, hidden),
                LayerTensor::Query => (query, hidden),
                LayerTensor::Key | LayerTensor::Value => (kv, hidden),
                LayerTensor::AttentionOutput => (hidden, query),
                LayerTensor::Gate | LayerTensor::Up => (config.intermediate_size, hidden),
                LayerTensor::Down => (hidden, config.intermediate_size),
            },
        }
    }
}
