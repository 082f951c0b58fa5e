//! `config.json` and `generation_config.json` of Hugging Face directories.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::family::{Family, Window};
use crate::hf_json::{FILE, number, present, read_json, size, token_ids};
use crate::hf_rope::rope_config;
use crate::{LoadError, ModelConfig};

#[derive(Deserialize)]
pub(crate) struct RawConfig {
    model_type: Option<String>,
    hidden_size: Option<Value>,
    intermediate_size: Option<Value>,
    num_hidden_layers: Option<Value>,
    num_attention_heads: Option<Value>,
    num_key_value_heads: Option<Value>,
    head_dim: Option<Value>,
    vocab_size: Option<Value>,
    max_position_embeddings: Option<Value>,
    rms_norm_eps: Option<Value>,
    pub(crate) rope_theta: Option<Value>,
    pub(crate) rope_scaling: Option<Value>,
    pub(crate) rope_parameters: Option<Value>,
    pub(crate) partial_rotary_factor: Option<Value>,
    tie_word_embeddings: Option<bool>,
    eos_token_id: Option<Value>,
    bos_token_id: Option<Value>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<Value>,
    quantization_config: Option<Value>,
    use_bidirectional_attention: Option<bool>,
}

/// Reads a directory's configuration.
pub(crate) fn read(directory: &Path) -> Result<(ModelConfig, &'static Family), LoadError> {
    let text = read_json(&directory.join(FILE))?;
    let raw: RawConfig = serde_json::from_slice(&text)
        .map_err(|error| LoadError::malformed(FILE, error.to_string(), "a JSON object of a Hugging Face model"))?;
    let model_type = raw.model_type.as_deref().unwrap_or("(absent)");
    let Some(family) = Family::of_model_type(model_type) else {
        let what = format!("model_type {model_type}");
        return Err(LoadError::unsupported(FILE, what, Family::model_types()));
    };
    let mut config = from_raw(&raw, family)?;
    let generation = directory.join("generation_config.json");
    if generation.exists() {
        let text = read_json(&generation)?;
        let value: Value = serde_json::from_slice(&text)
            .map_err(|error| LoadError::malformed("generation_config.json", error.to_string(), "a JSON object"))?;
        for id in token_ids("generation_config.json", "eos_token_id", value.get("eos_token_id"))? {
            if !config.eos_token_ids.contains(&id) {
                config.eos_token_ids.push(id);
            }
        }
    }
    Ok((config, family))
}

fn from_raw(raw: &RawConfig, family: &Family) -> Result<ModelConfig, LoadError> {
    let refused = [
        ("mlp_bias true", raw.mlp_bias == Some(true)),
        (
            "use_bidirectional_attention",
            raw.use_bidirectional_attention == Some(true),
        ),
        ("quantization_config", present(&raw.quantization_config).is_some()),
        (
            "sliding_window",
            family.window == Window::Never && present(&raw.sliding_window).is_some(),
        ),
    ];
    if let Some((what, _)) = refused.iter().find(|(_, found)| *found) {
        let supported = format!("plain {} layers", family.model_type);
        return Err(LoadError::unsupported(FILE, *what, supported));
    }
    let activation = match raw.hidden_activation.as_deref().or(raw.hidden_act.as_deref()) {
        None => family.activations[0].1,
        Some(name) => match family.activations.iter().find(|(known, _)| *known == name) {
            Some((_, activation)) => *activation,
            None => {
                let supported = family.activations[0].0;
                return Err(LoadError::unsupported(FILE, format!("hidden_act {name}"), supported));
            }
        },
    };
    let hidden_size = size("hidden_size", raw.hidden_size.as_ref())?;
    let head_count = size("num_attention_heads", raw.num_attention_heads.as_ref())?;
    let head_size = match (present(&raw.head_dim), family.default_head_size) {
        (Some(value), _) => size("head_dim", Some(value))?,
        (None, Some(default)) => default,
        (None, None) if head_count > 0 && hidden_size.is_multiple_of(head_count) => hidden_size / head_count,
        (None, None) => {
            let expected = format!("a divisor of hidden_size {hidden_size}, or head_dim given");
            return Err(LoadError::key(
                FILE,
                "num_attention_heads",
                format!("is {head_count}"),
                expected,
            ));
        }
    };
    let positions = size("max_position_embeddings", raw.max_position_embeddings.as_ref())?;
    let config = ModelConfig {
        architecture: family.model_type.into(),
        hidden_size,
        intermediate_size: size("intermediate_size", raw.intermediate_size.as_ref())?,
        layer_count: size("num_hidden_layers", raw.num_hidden_layers.as_ref())?,
        head_count,
        kv_head_count: match present(&raw.num_key_value_heads) {
            Some(value) => size("num_key_value_heads", Some(value))?,
            None => head_count,
        },
        head_size,
        vocab_size: size("vocab_size", raw.vocab_size.as_ref())?,
        context_length: match window(raw, family)? {
            Some(window) => positions.min(window),
            None => positions,
        },
        rms_norm_eps: present(&raw.rms_norm_eps).map_or(Ok(1e-6), |v| number("rms_norm_eps", v))? as f32,
        rope: rope_config(raw, head_size, positions)?,
        options: family.options(hidden_size, [raw.attention_bias == Some(true); 2], activation),
        tied_embeddings: raw.tie_word_embeddings.unwrap_or(family.tied_by_default),
        eos_token_ids: token_ids(FILE, "eos_token_id", raw.eos_token_id.as_ref())?,
        bos_token_id: token_ids(FILE, "bos_token_id", raw.bos_token_id.as_ref())?
            .first()
            .copied(),
    };
    match config.contradiction() {
        Some((key, found, expected)) => Err(LoadError::key(FILE, key, found, expected)),
        None => Ok(config),
    }
}

/// The window that attention slides over, if it does.
fn window(raw: &RawConfig, family: &Family) -> Result<Option<usize>, LoadError> {
    let default = match family.window {
        Window::Never => return Ok(None),
        Window::Switched if raw.use_sliding_window != Some(true) => return Ok(None),
        Window::Switched => None,
        Window::Given(default) => default,
    };
    match &raw.sliding_window {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(value) => size("sliding_window", Some(value)).map(Some),
    }
}
