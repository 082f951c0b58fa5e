//! Sound model files, changed at random: opening and reading them ends in a model or in one line that names a file, within a bound of memory.

use std::alloc::System;
use std::path::Path;

use cap::Cap;
use kvasir_model::testing::{TestModel, safetensors_bytes};
use kvasir_model::{ModelSource, TensorId};
use proptest::prelude::*;
use tempfile::TempDir;

/// Of all that these tests hold at once; the models take less than 1 MB. An allocation beyond it ends the process.
const BYTES_MAX: usize = 64 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, BYTES_MAX);

/// Numbers that lengths, counts and offsets overflow with.
const HOSTILE: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    1 << 24,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 62,
    u64::MAX / 2,
    u64::MAX,
];

/// One change; positions are taken modulo the length.
#[derive(Debug, Clone)]
enum Change {
    FlipBit(usize, u8),
    Number(usize, usize, u64),
    Splice { from: usize, to: usize, length: usize },
    Insert(usize, Vec<u8>),
    Truncate(usize),
}

fn change() -> impl Strategy<Value = Change> {
    // Headers are where structure is: most positions fall on the first bytes.
    let position = || prop_oneof![4 => 0usize..3000, 1 => any::<usize>()];
    prop_oneof![
        (position(), 0u8..8).prop_map(|(at, bit)| Change::FlipBit(at, bit)),
        (
            position(),
            prop::sample::select(vec![4, 8]),
            prop::sample::select(HOSTILE.to_vec())
        )
            .prop_map(|(at, width, value)| Change::Number(at, width, value)),
        (position(), position(), 1usize..200).prop_map(|(from, to, length)| Change::Splice { from, to, length }),
        (position(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        position().prop_map(Change::Truncate),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let length = bytes.len();
        if length == 0 {
            break;
        }
        match change {
            Change::FlipBit(at, bit) => bytes[at % length] ^= 1 << bit,
            Change::Number(at, width, value) => {
                let at = at % length;
                let end = (at + width).min(length);
                bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            }
            Change::Splice {
                from,
                to,
                length: count,
            } => {
                let from = from % length;
                let piece = bytes[from..(from + count).min(length)].to_vec();
                let to = to % length;
                let end = (to + piece.len()).min(length);
                bytes.splice(to..end, piece);
            }
            Change::Insert(at, inserted) => {
                let at = at % length;
                bytes.splice(at..at, inserted.iter().copied());
            }
            Change::Truncate(at) => bytes.truncate(at % length),
        }
    }
    bytes
}

/// Opens and reads everything; what goes wrong is one line of bounded length.
fn open_and_read(path: &Path, names: &[&str]) -> Result<(), TestCaseError> {
    match ModelSource::open(path) {
        Ok(source) => {
            for id in TensorId::all(source.config()) {
                prop_assert!(source.values(id).is_ok(), "{id:?} was checked at opening");
            }
        }
        Err(error) => {
            let text = error.to_string();
            prop_assert!(!text.contains('\n') && text.len() < 2000, "{text}");
            prop_assert!(names.iter().any(|name| text.contains(name)), "names no file: {text}");
        }
    }
    Ok(())
}

fn small() -> TestModel {
    TestModel {
        hidden: 32,
        intermediate: 32,
        layers: 1,
        vocab: 32,
        head_size: 8,
        tied: false,
        ..TestModel::default()
    }
}

fn directory_of(model: &TestModel) -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    model
        .write_hugging_face(directory.path())
        .expect("a writable directory");
    directory
}

/// A value that a key of config.json should not have.
fn hostile_json() -> impl Strategy<Value = String> {
    let long = format!("\"{}\"", "x".repeat(5000));
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let fixed = [
        "null",
        "true",
        "-1",
        "0.5",
        "1e300",
        "\"\"",
        "[]",
        "{}",
        "[[1],2]",
        "{\"rope_type\":\"yarn\",\"factor\":1e300}",
        "{\"rope_type\":\"llama3\",\"factor\":0}",
        "{\"type\":\"linear\",\"factor\":-3}",
        &long,
        &deep,
    ];
    prop_oneof![
        prop::sample::select(fixed.map(str::to_owned).to_vec()),
        prop::sample::select(HOSTILE.to_vec()).prop_map(|number| number.to_string()),
    ]
}

const KEYS: [&str; 18] = [
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "sliding_window",
    "attention_bias",
    "tie_word_embeddings",
    "eos_token_id",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_gguf_file(changes in prop::collection::vec(change(), 1..5)) {
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path().join("model.gguf");
        std::fs::write(&path, changed(small().gguf_bytes(), &changes)).expect("a writable file");
        open_and_read(&path, &["model.gguf"])?;
    }

    #[test]
    fn a_changed_safetensors_file(changes in prop::collection::vec(change(), 1..5)) {
        let model = small();
        let directory = directory_of(&model);
        let bytes = changed(safetensors_bytes(&model.tensors()), &changes);
        std::fs::write(directory.path().join("model.safetensors"), bytes).expect("a writable file");
        open_and_read(directory.path(), &["model.safetensors"])?;
    }

    #[test]
    fn a_changed_index(changes in prop::collection::vec(change(), 1..4)) {
        let model = small();
        let directory = directory_of(&model);
        let names = model.tensors().into_iter().map(|tensor| (tensor.name, "shard.safetensors".into()));
        let index = serde_json::json!({ "weight_map": names.collect::<serde_json::Map<String, serde_json::Value>>() });
        let bytes = changed(index.to_string().into_bytes(), &changes);
        std::fs::write(directory.path().join("model.safetensors.index.json"), bytes).expect("a writable file");
        let weights = directory.path().join("model.safetensors");
        std::fs::rename(weights, directory.path().join("shard.safetensors")).expect("a writable directory");
        open_and_read(directory.path(), &["safetensors"])?;
    }

    #[test]
    fn a_changed_configuration(changes in prop::collection::vec(change(), 1..4)) {
        let model = small();
        let directory = directory_of(&model);
        let bytes = changed(model.config_json().into_bytes(), &changes);
        std::fs::write(directory.path().join("config.json"), bytes).expect("a writable file");
        open_and_read(directory.path(), &["config.json", "model.safetensors"])?;
    }

    #[test]
    fn a_configuration_of_hostile_values(values in prop::collection::vec((prop::sample::select(KEYS.to_vec()), hostile_json()), 1..3)) {
        let model = small();
        let directory = directory_of(&model);
        let mut config = model.config_json();
        config.pop();
        for (key, value) in values {
            // The last of two equal keys would be refused by the reader before anything is looked at.
            config = config.replace(&format!("\"{key}\":"), &format!("\"unused_{key}\":"));
            config.push_str(&format!(",\"{key}\":{value}"));
        }
        config.push('}');
        std::fs::write(directory.path().join("config.json"), config).expect("a writable file");
        open_and_read(directory.path(), &["config.json", "model.safetensors"])?;
    }
}
