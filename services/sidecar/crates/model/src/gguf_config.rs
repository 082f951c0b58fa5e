//! The model's facts from GGUF metadata.

use crate::gguf::{GgufFile, GgufValue};
use crate::{LoadError, ModelConfig, RopeConfig, RopeScaling, TensorType};

/// Reads the configuration of a `llama` GGUF file.
pub(crate) fn read(file: &GgufFile) -> Result<ModelConfig, LoadError> {
    let name = &file.name;
    match file.metadata.get("general.architecture") {
        Some(GgufValue::Text(text)) if text == "llama" => {}
        Some(GgufValue::Text(text)) => {
            return Err(LoadError::unsupported(name, format!("architecture {text}"), "llama"));
        }
        _ => return Err(LoadError::key(name, "general.architecture", "is absent", "llama")),
    }
    let head_count = size(file, "llama.attention.head_count")?;
    let hidden_size = size(file, "llama.embedding_length")?;
    let head_size = match optional(file, "llama.attention.key_length")? {
        Some(length) => length,
        None if head_count > 0 => hidden_size / head_count,
        None => return Err(LoadError::key(name, "llama.attention.head_count", "is 0", "1 or more")),
    };
    if let Some(value_length) = optional(file, "llama.attention.value_length")?.filter(|length| *length != head_size) {
        let expected = format!("key_length {head_size}");
        return Err(LoadError::key(
            name,
            "llama.attention.value_length",
            format!("is {value_length}"),
            expected,
        ));
    }
    if let Some(experts) = optional(file, "llama.expert_count")?.filter(|experts| *experts > 0) {
        return Err(LoadError::unsupported(
            name,
            format!("{experts} experts"),
            "dense models",
        ));
    }
    let vocab_size = match file.entries.get("token_embd.weight") {
        Some(entry) if entry.dims.len() == 2 => entry.dims[1] as usize,
        _ => {
            return Err(LoadError::MissingTensor {
                file: name.clone(),
                tensor: "token_embd.weight".into(),
                expected: format!("[{hidden_size}, vocabulary]"),
            });
        }
    };
    let mut eos_token_ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        if let Some(id) = optional(file, key)?.filter(|id| *id < vocab_size)
            && !eos_token_ids.contains(&(id as u32))
        {
            eos_token_ids.push(id as u32);
        }
    }
    let config = ModelConfig {
        architecture: "llama".into(),
        hidden_size,
        intermediate_size: size(file, "llama.feed_forward_length")?,
        layer_count: size(file, "llama.block_count")?,
        head_count,
        kv_head_count: optional(file, "llama.attention.head_count_kv")?.unwrap_or(head_count),
        head_size,
        vocab_size,
        context_length: size(file, "llama.context_length")?,
        rms_norm_eps: float(file, "llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5) as f32,
        rope: RopeConfig {
            base: float(file, "llama.rope.freq_base")?.unwrap_or(10_000.0),
            dim: optional(file, "llama.rope.dimension_count")?.unwrap_or(head_size),
            scaling: rope_scaling(file)?,
        },
        tied_embeddings: !file.entries.contains_key("output.weight"),
        eos_token_ids,
        bos_token_id: optional(file, "tokenizer.ggml.bos_token_id")?.and_then(|id| u32::try_from(id).ok()),
    };
    match config.contradiction() {
        Some((key, found, expected)) => Err(LoadError::key(name, key, found, expected)),
        None => Ok(config),
    }
}

/// llama3 scaling comes as a tensor of divisors; other kinds are named by metadata and refused.
fn rope_scaling(file: &GgufFile) -> Result<RopeScaling, LoadError> {
    if let Some(GgufValue::Text(kind)) = file.metadata.get("llama.rope.scaling.type") {
        let factor = float(file, "llama.rope.scaling.factor")?.unwrap_or(1.0);
        if kind != "none" && factor != 1.0 {
            return Err(LoadError::unsupported(
                &file.name,
                format!("rope scaling {kind}"),
                "none, rope_freqs.weight",
            ));
        }
    }
    let Some(entry) = file.entries.get("rope_freqs.weight") else {
        return Ok(RopeScaling::None);
    };
    if entry.tensor_type != TensorType::F32 || entry.dims.len() != 1 {
        let found = format!("has type {:?} and dimensions {:?}", entry.tensor_type, entry.dims);
        return Err(LoadError::tensor(
            &file.name,
            "rope_freqs.weight",
            found,
            "a vector of F32",
        ));
    }
    let bytes = &file.map[entry.begin..entry.end];
    let factors: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let trivial = factors.iter().all(|factor| *factor == 1.0);
    Ok(if trivial {
        RopeScaling::None
    } else {
        RopeScaling::Factors(factors)
    })
}

fn size(file: &GgufFile, key: &str) -> Result<usize, LoadError> {
    optional(file, key)?.ok_or_else(|| LoadError::key(&file.name, key, "is absent", "a whole number"))
}

fn optional(file: &GgufFile, key: &str) -> Result<Option<usize>, LoadError> {
    let value = match file.metadata.get(key) {
        None => return Ok(None),
        Some(GgufValue::Unsigned(n)) => usize::try_from(*n).ok(),
        Some(GgufValue::Signed(n)) => usize::try_from(*n).ok(),
        Some(_) => None,
    };
    match value {
        Some(value) => Ok(Some(value)),
        None => {
            let found = format!("is {:?}", file.metadata.get(key));
            Err(LoadError::key(
                &file.name,
                key,
                found,
                "a whole number, the same for all layers",
            ))
        }
    }
}

fn float(file: &GgufFile, key: &str) -> Result<Option<f64>, LoadError> {
    match file.metadata.get(key) {
        None => Ok(None),
        Some(GgufValue::Float(value)) => Ok(Some(*value)),
        Some(GgufValue::Unsigned(value)) => Ok(Some(*value as f64)),
        Some(other) => Err(LoadError::key(&file.name, key, format!("is {other:?}"), "a number")),
    }
}
