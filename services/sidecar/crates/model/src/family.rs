//! What families of models differ in. A new family whose layers are made of the parts in [`LayerTensor`] is one entry of [`FAMILIES`].

use crate::LayerOptions;
use crate::config::Activation;
use crate::tensor::LayerTensor;

/// One family: its names, where its layers' tensors are, and how its configuration is read.
#[derive(Debug)]
pub(crate) struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// `general.architecture` in GGUF files, the prefix of their keys too; files of another family's name are absent.
    pub architecture: Option<&'static str>,
    /// Tensors of a layer, in groups that families share.
    pub layer: &'static [&'static [StoredTensor]],
    /// Whether query, key and value projections have biases.
    pub qkv_bias: Bias,
    /// Whether the attention's output projection has one.
    pub attention_output_bias: Bias,
    /// Whether queries and keys are normed by head.
    pub head_norms: bool,
    /// Values of `hidden_act`, the first being what is meant when there is none.
    pub activations: &'static [(&'static str, Activation)],
    /// Safetensors hold norm weights less this (GGUF files hold them whole).
    pub norm_offset: f32,
    /// Whether embeddings are multiplied with the square root of the hidden size.
    pub scaled_embedding: bool,
    /// `tie_word_embeddings` when config.json has none.
    pub tied_by_default: bool,
    /// `head_dim` when config.json has none; otherwise hidden size / heads.
    pub default_head_size: Option<usize>,
    /// Whether attention may slide over a window.
    pub window: Window,
    /// Whether GGUF files interleave the halves of each head's query and key rows, for rotation in neighbouring pairs.
    pub interleaved_rows: bool,
}

/// Whether a family's projections have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    Never,
    Always,
    /// By `attention_bias` in config.json, by the tensors' presence in GGUF files.
    Configured,
}

/// How `sliding_window` in config.json is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    /// The family has none.
    Never,
    /// A number is the window, null is none, and nothing is this.
    Given(Option<usize>),
    /// The number is the window, but only when `use_sliding_window` is true.
    Switched,
}

/// A tensor of a layer as files have it: its name after the layer's prefix, and the parts whose rows it stacks.
#[derive(Debug)]
pub(crate) struct StoredTensor {
    pub hugging_face: &'static str,
    pub gguf: &'static str,
    pub parts: &'static [LayerTensor],
}

const fn stored(hugging_face: &'static str, gguf: &'static str, parts: &'static [LayerTensor]) -> StoredTensor {
    StoredTensor {
        hugging_face,
        gguf,
        parts,
    }
}

use LayerTensor::*;

const BLOCK: &[StoredTensor] = &[
    stored("input_layernorm.weight", "attn_norm.weight", &[AttentionNorm]),
    stored("self_attn.o_proj.weight", "attn_output.weight", &[AttentionOutput]),
    stored("post_attention_layernorm.weight", "ffn_norm.weight", &[MlpNorm]),
    stored("mlp.down_proj.weight", "ffn_down.weight", &[Down]),
];
const SEPARATE: &[StoredTensor] = &[
    stored("self_attn.q_proj.weight", "attn_q.weight", &[Query]),
    stored("self_attn.k_proj.weight", "attn_k.weight", &[Key]),
    stored("self_attn.v_proj.weight", "attn_v.weight", &[Value]),
    stored("mlp.gate_proj.weight", "ffn_gate.weight", &[Gate]),
    stored("mlp.up_proj.weight", "ffn_up.weight", &[Up]),
];
const FUSED: &[StoredTensor] = &[
    stored("self_attn.qkv_proj.weight", "attn_qkv.weight", &[Query, Key, Value]),
    stored("mlp.gate_up_proj.weight", "ffn_up.weight", &[Gate, Up]),
];
const BIASES: &[StoredTensor] = &[
    stored("self_attn.q_proj.bias", "attn_q.bias", &[QueryBias]),
    stored("self_attn.k_proj.bias", "attn_k.bias", &[KeyBias]),
    stored("self_attn.v_proj.bias", "attn_v.bias", &[ValueBias]),
    stored("self_attn.o_proj.bias", "attn_output.bias", &[AttentionOutputBias]),
];
const HEAD_NORMS: &[StoredTensor] = &[
    stored("self_attn.q_norm.weight", "attn_q_norm.weight", &[QueryNorm]),
    stored("self_attn.k_norm.weight", "attn_k_norm.weight", &[KeyNorm]),
];

const SILU: &[(&str, Activation)] = &[("silu", Activation::Silu)];

/// Llama 2 and 3, and whatever calls itself one.
const LLAMA: Family = Family {
    model_type: "llama",
    architecture: Some("llama"),
    layer: &[BLOCK, SEPARATE, BIASES],
    qkv_bias: Bias::Configured,
    attention_output_bias: Bias::Configured,
    head_norms: false,
    activations: SILU,
    norm_offset: 0.0,
    scaled_embedding: false,
    tied_by_default: false,
    default_head_size: None,
    window: Window::Never,
    interleaved_rows: true,
};

/// Every family.
pub(crate) static FAMILIES: [Family; 6] = [
    LLAMA,
    Family {
        model_type: "mistral",
        architecture: None, // GGUF files call it llama.
        layer: &[BLOCK, SEPARATE],
        qkv_bias: Bias::Never,
        attention_output_bias: Bias::Never,
        window: Window::Given(Some(4096)),
        ..LLAMA
    },
    // Qwen2 and Qwen2.5.
    Family {
        model_type: "qwen2",
        architecture: Some("qwen2"),
        layer: &[BLOCK, SEPARATE, BIASES],
        qkv_bias: Bias::Always,
        attention_output_bias: Bias::Never,
        window: Window::Switched,
        interleaved_rows: false,
        ..LLAMA
    },
    Family {
        model_type: "qwen3",
        architecture: Some("qwen3"),
        layer: &[BLOCK, SEPARATE, BIASES, HEAD_NORMS],
        head_norms: true,
        default_head_size: Some(128),
        window: Window::Switched,
        interleaved_rows: false,
        ..LLAMA
    },
    // Phi-3, Phi-3.5 and Phi-4: fused projections, part of a head rotated in some.
    Family {
        model_type: "phi3",
        architecture: Some("phi3"),
        layer: &[BLOCK, FUSED],
        qkv_bias: Bias::Never,
        attention_output_bias: Bias::Never,
        window: Window::Given(None),
        interleaved_rows: false,
        ..LLAMA
    },
    Family {
        model_type: "gemma",
        architecture: Some("gemma"),
        layer: &[BLOCK, SEPARATE, BIASES],
        activations: &[
            ("gelu_pytorch_tanh", Activation::GeluTanh),
            ("gelu", Activation::GeluTanh), // Early releases say gelu and mean this.
        ],
        norm_offset: 1.0,
        scaled_embedding: true,
        tied_by_default: true,
        default_head_size: Some(256),
        interleaved_rows: false,
        ..LLAMA
    },
];

impl Family {
    /// By `model_type`.
    pub(crate) fn of_model_type(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.model_type == model_type)
    }

    /// By `general.architecture`.
    pub(crate) fn of_architecture(architecture: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.architecture == Some(architecture))
    }

    /// Every `model_type`, for messages.
    pub(crate) fn model_types() -> String {
        names(|family| Some(family.model_type))
    }

    /// Every `general.architecture`, for messages.
    pub(crate) fn architectures() -> String {
        names(|family| family.architecture)
    }

    /// What layers have, by the family and what the file says about biases: of query, key and value, and of the attention's output.
    pub(crate) fn options(&self, hidden_size: usize, has_bias: [bool; 2], activation: Activation) -> LayerOptions {
        let bias = |bias, configured| match bias {
            Bias::Never => false,
            Bias::Always => true,
            Bias::Configured => configured,
        };
        LayerOptions {
            qkv_bias: bias(self.qkv_bias, has_bias[0]),
            attention_output_bias: bias(self.attention_output_bias, has_bias[1]),
            head_norms: self.head_norms,
            activation,
            embedding_scale: if self.scaled_embedding {
                (hidden_size as f64).sqrt() as f32
            } else {
                1.0
            },
        }
    }

    /// The stored tensor that holds a part; every part that the family's options can ask for is in its table.
    pub(crate) fn stored(&self, part: LayerTensor) -> Option<&'static StoredTensor> {
        let mut tensors = self.layer.iter().copied().flatten();
        tensors.find(|tensor| tensor.parts.contains(&part))
    }
}

fn names(name: impl Fn(&Family) -> Option<&'static str>) -> String {
    FAMILIES.iter().filter_map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_that_a_family_can_have_is_in_one_tensor_of_its_table() {
        for family in &FAMILIES {
            let (_, activation) = family.activations[0];
            for has_bias in [false, true] {
                let options = family.options(64, [has_bias; 2], activation);
                for part in LayerTensor::ALL.into_iter().filter(|part| part.is_in(&options)) {
                    let tensors = family.layer.iter().copied().flatten();
                    let holders = tensors.filter(|tensor| tensor.parts.contains(&part)).count();
                    assert_eq!(holders, 1, "{} {part:?}", family.model_type);
                }
            }
        }
    }

    #[test]
    fn names_are_unique() {
        for (index, family) in FAMILIES.iter().enumerate() {
            for other in &FAMILIES[..index] {
                assert_ne!(family.model_type, other.model_type);
                assert!(family.architecture.is_none() || family.architecture != other.architecture);
            }
        }
    }
}
