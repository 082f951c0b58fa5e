//! `kvasir-sidecar inspect`: what a model's files hold, checked as for serving.

use std::path::Path;

use kvasir_model::{ModelSource, TensorId};

use crate::serve::Fatal;

/// Reads every tensor and prints the configuration and the tensor table as JSON.
///
/// # Errors
/// The first thing wrong with the files: file, tensor and expectation.
pub fn inspect(path: &Path) -> Result<(), Fatal> {
    let source = ModelSource::open(path)?;
    let config = source.config();
    let mut tensors = Vec::new();
    for id in TensorId::all(config) {
        let tensor = source.tensor(id)?;
        tensors.push(serde_json::json!({
            "name": tensor.name,
            "type": format!("{:?}", tensor.tensor_type),
            "rows": tensor.rows,
            "cols": tensor.cols,
            "bytes": tensor.bytes.len(),
        }));
    }
    println!(
        "{}",
        serde_json::json!({
            "architecture": config.architecture,
            "revision": source.revision(),
            "weight_bytes": source.total_bytes(),
            "layers": config.layer_count,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "heads": config.head_count,
            "kv_heads": config.kv_head_count,
            "head_size": config.head_size,
            "vocab_size": config.vocab_size,
            "context_length": config.context_length,
            "rope": config.rope.describe(),
            "tied_embeddings": config.tied_embeddings,
            "eos_token_ids": config.eos_token_ids,
            "tensors": tensors,
        })
    );
    Ok(())
}
