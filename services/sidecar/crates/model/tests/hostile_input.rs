//! Whatever the bytes, opening answers with a model or one line that says what is wrong.

use std::path::{Path, PathBuf};

use kvasir_model::testing::{TestModel, TestTensor, safetensors_bytes};
use kvasir_model::{LoadError, ModelSource, TensorId};
use proptest::prelude::*;
use tempfile::TempDir;

fn gguf_file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("a writable file");
    (directory, path)
}

fn hugging_face(config: &str, tensors: &[TestTensor]) -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    std::fs::write(directory.path().join("config.json"), config).expect("a writable file");
    std::fs::write(directory.path().join("model.safetensors"), safetensors_bytes(tensors)).expect("a writable file");
    directory
}

fn message(path: &Path) -> String {
    let error: LoadError = ModelSource::open(path).expect_err("this model is broken");
    let text = error.to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

#[test]
fn both_formats_give_the_same_weights() {
    let model = TestModel {
        tied: false,
        ..TestModel::default()
    };
    let directory = TempDir::new().expect("a temporary directory");
    model
        .write_hugging_face(directory.path())
        .expect("a writable directory");
    let (_keep, path) = gguf_file(&model.gguf_bytes());
    let (ours, theirs) = (
        ModelSource::open(directory.path()).unwrap(),
        ModelSource::open(&path).unwrap(),
    );
    let ids: Vec<TensorId> = TensorId::all(ours.config()).collect();
    assert_eq!(ids.len(), 3 + 2 * 9);
    for id in ids {
        assert_eq!(
            ours.tensor(id).unwrap().bytes,
            theirs.tensor(id).unwrap().bytes,
            "{id:?}"
        );
    }
    assert_eq!(ours.config().rope, theirs.config().rope);
    assert_eq!(ours.revision().len(), 32);
}

#[test]
fn shards_are_found_by_the_index() {
    let model = TestModel::default();
    let tensors = model.tensors();
    let directory = TempDir::new().expect("a temporary directory");
    std::fs::write(directory.path().join("config.json"), model.config_json()).unwrap();
    let mut map = serde_json::Map::new();
    for (i, half) in tensors.chunks(tensors.len() / 2 + 1).enumerate() {
        let name = format!("model-{i}.safetensors");
        std::fs::write(directory.path().join(&name), safetensors_bytes(half)).unwrap();
        map.extend(half.iter().map(|tensor| (tensor.name.clone(), name.clone().into())));
    }
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(directory.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert!(ModelSource::open(directory.path()).is_ok());
    std::fs::remove_file(directory.path().join("model-1.safetensors")).unwrap();
    assert!(message(directory.path()).contains("model-1.safetensors"));
}

#[test]
fn messages_name_file_tensor_and_expectation() {
    let model = TestModel::default();
    let mut tensors = model.tensors();
    let up = tensors
        .iter()
        .position(|tensor| tensor.name == "model.layers.1.mlp.up_proj.weight")
        .unwrap();
    tensors[up].shape = vec![64, 96];
    let directory = hugging_face(&model.config_json(), &tensors);
    assert_eq!(
        message(directory.path()),
        "model.safetensors: tensor model.layers.1.mlp.up_proj.weight has shape [64, 96]; expected [96, 64] by the configuration"
    );
    tensors[up].name = "model.layers.1.self_attn.k_norm.weight".into();
    tensors[up].shape = vec![64 * 96];
    let norm = tensors[up].clone();
    tensors.remove(up);
    let directory = hugging_face(&model.config_json(), &tensors);
    assert_eq!(
        message(directory.path()),
        "model.safetensors: tensor model.layers.1.mlp.up_proj.weight is missing; expected [96, 64]"
    );
    let mut tensors = model.tensors();
    tensors.push(norm);
    let directory = hugging_face(&model.config_json(), &tensors);
    assert_eq!(
        message(directory.path()),
        "model.safetensors: tensor model.layers.1.self_attn.k_norm.weight is not known; expected only what llama layers of this configuration have"
    );
}

#[test]
fn configurations_that_cannot_be_run_are_refused_by_name() {
    let model = TestModel::default();
    let config = model.config_json();
    for (from, to, part) in [
        (
            r#""model_type":"llama""#,
            r#""model_type":"mamba""#,
            "model_type mamba is not supported",
        ),
        (
            r#""hidden_act":"silu""#,
            r#""hidden_act":"gelu""#,
            "hidden_act gelu is not supported",
        ),
        (
            r#""hidden_act":"silu""#,
            r#""mlp_bias":true"#,
            "mlp_bias true is not supported",
        ),
        (
            r#""hidden_act":"silu""#,
            r#""rope_scaling":{"rope_type":"longrope","factor":2}"#,
            "rope type longrope is not supported",
        ),
        (
            r#""hidden_act":"silu""#,
            r#""rope_scaling":{"rope_type":"yarn","factor":0.5}"#,
            "rope_scaling is base=10000,dim=16,scaling=yarn:0.5",
        ),
        (
            r#""hidden_act":"silu""#,
            r#""sliding_window":128"#,
            "sliding_window is not supported; supported: plain llama layers",
        ),
        (
            r#""num_attention_heads":4"#,
            r#""num_attention_heads":0"#,
            "num_attention_heads is 0",
        ),
        (
            r#""num_key_value_heads":2"#,
            r#""num_key_value_heads":3"#,
            "num_key_value_heads is 3; expected a divisor",
        ),
        (r#""hidden_size":64"#, r#""hidden_size":-64"#, "hidden_size is -64"),
        (r#""hidden_size":64"#, r#""hidden_size":1e30"#, "hidden_size is 1e+30"),
        (
            r#""num_hidden_layers":2"#,
            r#""num_hidden_layers":99999999"#,
            "num_hidden_layers is 99999999",
        ),
        (r#""rope_theta":10000.0"#, r#""rope_theta":"x""#, "rope_theta is \"x\""),
    ] {
        assert!(config.contains(from), "{from}");
        let directory = hugging_face(&config.replace(from, to), &model.tensors());
        let text = message(directory.path());
        assert!(text.starts_with("config.json: ") && text.contains(part), "{to}: {text}");
    }
}

#[test]
fn missing_and_empty_files_are_named() {
    let directory = TempDir::new().unwrap();
    assert!(message(directory.path()).contains("config.json"));
    std::fs::write(directory.path().join("config.json"), TestModel::default().config_json()).unwrap();
    assert!(message(directory.path()).contains("no model.safetensors"));
    std::fs::write(directory.path().join("model.safetensors"), b"").unwrap();
    assert!(message(directory.path()).contains("model.safetensors: the file is empty"));
    assert!(message(Path::new("nowhere/at/all")).contains("nowhere/at/all"));
    let (_keep, path) = gguf_file(b"GGUF");
    assert!(message(&path).contains("model.gguf: the file ends at byte 4"));
}

#[test]
fn overlapping_and_escaping_data_is_refused() {
    let model = TestModel::default();
    let bytes = safetensors_bytes(&model.tensors());
    let directory = hugging_face(&model.config_json(), &model.tensors());
    let file = directory.path().join("model.safetensors");
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    assert!(message(directory.path()).contains("truncated or damaged"));
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#;
    let mut overlapping = (header.len() as u64).to_le_bytes().to_vec();
    overlapping.extend(header);
    overlapping.extend([0; 6]);
    std::fs::write(&file, &overlapping).unwrap();
    assert!(message(directory.path()).contains("overlap"));
    let mut endless = u64::MAX.to_le_bytes().to_vec();
    endless.extend(header);
    std::fs::write(&file, &endless).unwrap();
    assert!(message(directory.path()).contains("header"));
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused_before_memory_is_asked_for() {
    let mut bytes = TestModel::default().gguf_bytes();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let (_keep, path) = gguf_file(&bytes);
    assert!(message(&path).contains("tensors in"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn damaged_gguf_files_never_panic(edits in prop::collection::vec((0usize..4000, any::<u8>()), 1..6), cut in prop::option::of(0usize..4000)) {
        let mut bytes = TestModel::default().gguf_bytes();
        for (at, value) in edits {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        let (_keep, path) = gguf_file(&bytes);
        if let Err(error) = ModelSource::open(&path) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn damaged_safetensors_never_panic(edits in prop::collection::vec((0usize..3000, any::<u8>()), 1..6), cut in prop::option::of(0usize..9000)) {
        let model = TestModel::default();
        let directory = hugging_face(&model.config_json(), &[]);
        let mut bytes = safetensors_bytes(&model.tensors());
        for (at, value) in edits {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        std::fs::write(directory.path().join("model.safetensors"), &bytes).unwrap();
        if let Err(error) = ModelSource::open(directory.path()) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn damaged_configurations_never_panic(edits in prop::collection::vec((0usize..400, any::<u8>()), 1..4)) {
        let model = TestModel::default();
        let mut config = model.config_json().into_bytes();
        for (at, value) in edits {
            let length = config.len();
            config[at % length] = value;
        }
        let directory = hugging_face("{}", &model.tensors());
        std::fs::write(directory.path().join("config.json"), &config).unwrap();
        if let Err(error) = ModelSource::open(directory.path()) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
