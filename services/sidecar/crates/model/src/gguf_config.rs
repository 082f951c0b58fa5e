//! The model's facts from GGUF metadata.

use crate::family::Family;
use crate::gguf::{GgufFile, GgufValue};
use crate::gguf_rope::rope_config;
use crate::{LoadError, ModelConfig};

/// A file's metadata by keys after its architecture's prefix.
pub(crate) struct Keys<'a> {
    pub file: &'a GgufFile,
    architecture: &'a str,
}

/// Reads the configuration of a GGUF file.
pub(crate) fn read(file: &GgufFile) -> Result<(ModelConfig, &'static Family), LoadError> {
    let name = &file.name;
    let Some(GgufValue::Text(architecture)) = file.metadata.get("general.architecture") else {
        return Err(LoadError::key(
            name,
            "general.architecture",
            "is absent",
            Family::architectures(),
        ));
    };
    let Some(family) = Family::of_architecture(architecture) else {
        let what = format!("architecture {architecture}");
        return Err(LoadError::unsupported(name, what, Family::architectures()));
    };
    let keys = Keys { file, architecture };
    let head_count = keys.size("attention.head_count")?;
    let hidden_size = keys.size("embedding_length")?;
    let head_size = match keys.optional("attention.key_length")? {
        Some(length) => length,
        None if head_count > 0 => hidden_size / head_count,
        None => return Err(keys.wrong("attention.head_count", "is 0", "1 or more")),
    };
    if let Some(value_length) = keys
        .optional("attention.value_length")?
        .filter(|length| *length != head_size)
    {
        let expected = format!("key_length {head_size}");
        return Err(keys.wrong("attention.value_length", format!("is {value_length}"), expected));
    }
    if let Some(experts) = keys.optional("expert_count")?.filter(|experts| *experts > 0) {
        let what = format!("{experts} experts");
        return Err(LoadError::unsupported(name, what, "dense models"));
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
    let positions = keys.size("context_length")?;
    let has_bias = ["attn_q", "attn_output"].map(|part| file.entries.contains_key(&format!("blk.0.{part}.bias")));
    let config = ModelConfig {
        architecture: architecture.clone(),
        hidden_size,
        intermediate_size: keys.size("feed_forward_length")?,
        layer_count: keys.size("block_count")?,
        head_count,
        kv_head_count: keys.optional("attention.head_count_kv")?.unwrap_or(head_count),
        head_size,
        vocab_size,
        context_length: match keys.optional("attention.sliding_window")?.filter(|window| *window > 0) {
            Some(window) => positions.min(window),
            None => positions,
        },
        rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5) as f32,
        rope: rope_config(&keys, head_size, positions)?,
        options: family.options(hidden_size, has_bias, family.activations[0].1),
        tied_embeddings: !file.entries.contains_key("output.weight"),
        eos_token_ids: end_tokens(file, vocab_size)?,
        bos_token_id: whole_number(file, "tokenizer.ggml.bos_token_id")?.and_then(|id| u32::try_from(id).ok()),
    };
    match config.contradiction() {
        Some((key, found, expected)) => Err(LoadError::key(name, key, found, expected)),
        None if family.interleaved_rows && config.rope.dim != head_size => {
            let expected = format!("head size {head_size}: partial rotation of interleaved rows is not supported");
            let found = format!("is {}", config.rope.dim);
            Err(keys.wrong("rope.dimension_count", found, expected))
        }
        None => Ok((config, family)),
    }
}

fn end_tokens(file: &GgufFile, vocab_size: usize) -> Result<Vec<u32>, LoadError> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        if let Some(id) = whole_number(file, key)?.filter(|id| *id < vocab_size)
            && !ids.contains(&(id as u32))
        {
            ids.push(id as u32);
        }
    }
    Ok(ids)
}

impl Keys<'_> {
    pub(crate) fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(crate) fn wrong(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> LoadError {
        LoadError::key(&self.file.name, &self.full(key), found, expected)
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize, LoadError> {
        self.optional(key)?
            .ok_or_else(|| self.wrong(key, "is absent", "a whole number"))
    }

    pub(crate) fn optional(&self, key: &str) -> Result<Option<usize>, LoadError> {
        whole_number(self.file, &self.full(key))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        match self.file.metadata.get(&self.full(key)) {
            None => Ok(None),
            Some(GgufValue::Float(value)) => Ok(Some(*value)),
            Some(GgufValue::Unsigned(value)) => Ok(Some(*value as f64)),
            Some(other) => Err(self.wrong(key, format!("is {other:?}"), "a number")),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.file.metadata.get(&self.full(key)) {
            Some(GgufValue::Text(text)) => Some(text),
            _ => None,
        }
    }
}

fn whole_number(file: &GgufFile, key: &str) -> Result<Option<usize>, LoadError> {
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
            let expected = "a whole number, the same for all layers";
            Err(LoadError::key(&file.name, key, found, expected))
        }
    }
}
