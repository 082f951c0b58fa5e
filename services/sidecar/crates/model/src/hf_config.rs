//! `config.json` and `generation_config.json` of Hugging Face directories.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::{LoadError, ModelConfig, RopeConfig, RopeScaling};

const FILE: &str = "config.json";
const JSON_BYTES_MAX: u64 = 16 << 20;

#[derive(Deserialize)]
struct RawConfig {
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
    rope_theta: Option<Value>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    tie_word_embeddings: Option<bool>,
    eos_token_id: Option<Value>,
    bos_token_id: Option<Value>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<Value>,
    quantization_config: Option<Value>,
}

/// Reads a directory's configuration.
pub(crate) fn read(directory: &Path) -> Result<ModelConfig, LoadError> {
    let text = read_json(&directory.join(FILE))?;
    let raw: RawConfig = serde_json::from_slice(&text)
        .map_err(|error| LoadError::malformed(FILE, error.to_string(), "a JSON object of a Hugging Face model"))?;
    let mut config = from_raw(&raw)?;
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
    Ok(config)
}

fn read_json(path: &Path) -> Result<Vec<u8>, LoadError> {
    let io = |source| LoadError::Io {
        file: path.display().to_string(),
        source,
    };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > JSON_BYTES_MAX {
        let name = crate::mapped::file_name(path);
        return Err(LoadError::malformed(
            &name,
            format!("{length} bytes"),
            format!("at most {JSON_BYTES_MAX}"),
        ));
    }
    std::fs::read(path).map_err(io)
}

fn from_raw(raw: &RawConfig) -> Result<ModelConfig, LoadError> {
    if raw.model_type.as_deref() != Some("llama") {
        let what = format!("model_type {}", raw.model_type.as_deref().unwrap_or("(absent)"));
        return Err(LoadError::unsupported(FILE, what, "llama"));
    }
    let refused = [
        ("attention_bias true", raw.attention_bias == Some(true)),
        ("mlp_bias true", raw.mlp_bias == Some(true)),
        (
            "sliding_window",
            raw.sliding_window.as_ref().is_some_and(|v| !v.is_null()),
        ),
        (
            "quantization_config",
            raw.quantization_config.as_ref().is_some_and(|v| !v.is_null()),
        ),
    ];
    if let Some((what, _)) = refused.iter().find(|(_, found)| *found) {
        return Err(LoadError::unsupported(FILE, *what, "plain Llama layers"));
    }
    if let Some(act) = raw.hidden_act.as_deref().filter(|act| *act != "silu") {
        return Err(LoadError::unsupported(FILE, format!("hidden_act {act}"), "silu"));
    }
    let hidden_size = size("hidden_size", raw.hidden_size.as_ref())?;
    let head_count = size("num_attention_heads", raw.num_attention_heads.as_ref())?;
    let head_size = match raw.head_dim.as_ref().filter(|v| !v.is_null()) {
        Some(value) => size("head_dim", Some(value))?,
        None if head_count > 0 && hidden_size.is_multiple_of(head_count) => hidden_size / head_count,
        None => {
            let expected = format!("a divisor of hidden_size {hidden_size}, or head_dim given");
            return Err(LoadError::key(
                FILE,
                "num_attention_heads",
                format!("is {head_count}"),
                expected,
            ));
        }
    };
    let parameters = raw.rope_parameters.as_ref().filter(|v| !v.is_null());
    let base = match raw
        .rope_theta
        .as_ref()
        .or_else(|| parameters.and_then(|p| p.get("rope_theta")))
    {
        None | Some(Value::Null) => 10_000.0,
        Some(value) => number("rope_theta", value)?,
    };
    let scaling = rope_scaling(raw.rope_scaling.as_ref().filter(|v| !v.is_null()).or(parameters))?;
    let context_length = size("max_position_embeddings", raw.max_position_embeddings.as_ref())?;
    let config = ModelConfig {
        architecture: "llama".into(),
        hidden_size,
        intermediate_size: size("intermediate_size", raw.intermediate_size.as_ref())?,
        layer_count: size("num_hidden_layers", raw.num_hidden_layers.as_ref())?,
        head_count,
        kv_head_count: match raw.num_key_value_heads.as_ref().filter(|v| !v.is_null()) {
            Some(value) => size("num_key_value_heads", Some(value))?,
            None => head_count,
        },
        head_size,
        vocab_size: size("vocab_size", raw.vocab_size.as_ref())?,
        context_length,
        rms_norm_eps: raw
            .rms_norm_eps
            .as_ref()
            .map_or(Ok(1e-6), |v| number("rms_norm_eps", v))? as f32,
        rope: RopeConfig {
            base,
            dim: head_size,
            scaling,
        },
        tied_embeddings: raw.tie_word_embeddings.unwrap_or(false),
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

fn rope_scaling(value: Option<&Value>) -> Result<RopeScaling, LoadError> {
    let Some(value) = value else {
        return Ok(RopeScaling::None);
    };
    let kind = value
        .get("rope_type")
        .or_else(|| value.get("type"))
        .and_then(Value::as_str)
        .unwrap_or("default");
    match kind {
        "default" => Ok(RopeScaling::None),
        "llama3" => {
            let field = |key: &str| match value.get(key) {
                Some(value) => number(&format!("rope_scaling.{key}"), value),
                None => Err(LoadError::key(
                    FILE,
                    &format!("rope_scaling.{key}"),
                    "is absent",
                    "a number",
                )),
            };
            Ok(RopeScaling::Llama3 {
                factor: field("factor")?,
                low_freq_factor: field("low_freq_factor")?,
                high_freq_factor: field("high_freq_factor")?,
                original_context_length: size(
                    "rope_scaling.original_max_position_embeddings",
                    value.get("original_max_position_embeddings"),
                )?,
            })
        }
        other => Err(LoadError::unsupported(
            FILE,
            format!("rope type {other}"),
            "default, llama3",
        )),
    }
}

fn size(key: &str, value: Option<&Value>) -> Result<usize, LoadError> {
    match value {
        Some(Value::Number(number)) => match number.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(size) => Ok(size),
            None => Err(LoadError::key(FILE, key, format!("is {number}"), "a whole number")),
        },
        Some(other) => Err(LoadError::key(FILE, key, format!("is {other}"), "a whole number")),
        None => Err(LoadError::key(FILE, key, "is absent", "a whole number")),
    }
}

fn number(key: &str, value: &Value) -> Result<f64, LoadError> {
    value
        .as_f64()
        .ok_or_else(|| LoadError::key(FILE, key, format!("is {value}"), "a number"))
}

/// One id, a list of ids, or nothing.
fn token_ids(file: &str, key: &str, value: Option<&Value>) -> Result<Vec<u32>, LoadError> {
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| LoadError::key(file, key, format!("is {value}"), "a token id or a list of them"))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}
