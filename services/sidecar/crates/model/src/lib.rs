//! Model files of the families in `family.rs` as they come from Hugging Face (config.json and safetensors) or llama.cpp (GGUF): opened by memory
//! map, checked whole before use, and offered under one set of names. Nothing here computes.
//!
//! Every input is untrusted: lengths are checked before they are used, and each error is one line that names file, tensor or key, and
//! what was expected.
#![deny(unsafe_code)]

mod config;
mod error;
mod family;
mod files;
mod gguf;
mod gguf_config;
mod gguf_rope;
mod hf_config;
mod hf_json;
mod hf_rope;
mod mapped;
pub mod quant;
mod rope;
mod rope_text;
mod safetensors;
mod source;
mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use config::{Activation, LayerOptions, ModelConfig};
pub use error::LoadError;
pub use rope::{RopeConfig, RopeScaling};
pub use source::ModelSource;
pub use tensor::{LayerTensor, Tensor, TensorId, TensorType};
