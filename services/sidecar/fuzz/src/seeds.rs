//! Writes the files of small sound models, and chunks of KV, as the fuzzer's first inputs: `cargo run --bin seeds`.

use std::path::Path;

use kvasir_model::testing::{TestModel, safetensors_bytes};

fn main() -> std::io::Result<()> {
    // Small: the fuzzer's changes should fall on headers, not on weights.
    let model = TestModel {
        hidden: 16,
        intermediate: 8,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_size: 4,
        vocab: 8,
        ..TestModel::default()
    };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let yarn = r#""rope_scaling":{"rope_type":"yarn","factor":4.0},"attention_bias":true,"sliding_window":64"#;
    let families = ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma"].map(|family| {
        let config = TestModel::default()
            .config_json()
            .replace("\"llama\"", &format!("\"{family}\""));
        let end = config.len() - 1;
        (family.to_owned(), format!("{},{yarn}}}", &config[..end]).into_bytes())
    });
    let mut inputs = vec![
        (
            "safetensors_header",
            "tied".to_owned(),
            safetensors_bytes(&model.tensors()),
        ),
        ("gguf_header", "llama".to_owned(), model.gguf_bytes()),
        (
            "config_json",
            "plain".to_owned(),
            TestModel::default().config_json().into_bytes(),
        ),
    ];
    inputs.extend(families.into_iter().map(|(name, bytes)| ("config_json", name, bytes)));
    let chunks = kvasir_fuzz::chunk_seeds().into_iter();
    inputs.extend(chunks.map(|(name, bytes)| ("codec_chunk", name, bytes)));
    for (target, name, bytes) in inputs {
        let directory = corpus.join(target);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(name), bytes)?;
    }
    Ok(())
}
