//! From files to logits.

mod common;

use kvasir_engine::{Engine, EngineError, EngineOptions, Footprint, KvDtype, WeightFormat};
use kvasir_model::{ModelSource, testing::TestModel};
use std::path::Path;

fn load(path: &Path, options: EngineOptions) -> Result<Engine, EngineError> {
    Engine::load(&ModelSource::open(path)?, options, &mut |_, _| {})
}

#[test]
fn the_same_weights_give_the_same_logits_from_either_file_format() {
    let directory = tempfile::tempdir().unwrap();
    for (index, tied) in [true, false].into_iter().enumerate() {
        let model = TestModel {
            tied,
            ..TestModel::default()
        };
        let folder = directory.path().join(index.to_string());
        model.write_hugging_face(&folder).unwrap();
        let file = directory.path().join(format!("{index}.gguf"));
        std::fs::write(&file, model.gguf_bytes()).unwrap();
        let tokens: Vec<u32> = (0..60).map(|i| i * 7 % 128).collect();
        let logits = |path: &Path| {
            let mut engine = load(path, common::options(16, KvDtype::F32, 1)).unwrap();
            engine.logits(&tokens, 25).unwrap()
        };
        let (from_folder, from_file) = (logits(&folder), logits(&file));
        assert_eq!(from_folder.len(), 60 * 128);
        assert!(from_folder.iter().all(|logit| logit.is_finite()));
        assert!(from_folder == from_file, "tied {tied}");
    }
}

#[test]
fn progress_ends_at_all_bytes() {
    let directory = tempfile::tempdir().unwrap();
    TestModel::default().write_hugging_face(directory.path()).unwrap();
    let source = ModelSource::open(directory.path()).unwrap();
    let mut seen = Vec::new();
    Engine::load(&source, common::options(16, KvDtype::F32, 1), &mut |done, total| {
        seen.push((done, total))
    })
    .unwrap();
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&(source.total_bytes(), source.total_bytes())));
}

#[test]
fn options_that_cannot_work_are_refused_with_their_value() {
    let directory = tempfile::tempdir().unwrap();
    TestModel::default().write_hugging_face(directory.path()).unwrap();
    let refused = |options| load(directory.path(), options).err().map(|error| error.to_string());
    let options = common::options(16, KvDtype::F32, 1);
    assert_eq!(
        refused(EngineOptions {
            block_size: 20,
            ..options
        }),
        Some("KV pool: block_size is 20; use 16, 32 or 64".into())
    );
    assert_eq!(
        refused(EngineOptions {
            shard_count: 4,
            ..options
        }),
        Some("KV pool: 2 KV heads cannot be divided among 4 shards; use a divisor of 2".into())
    );
    assert_eq!(
        refused(EngineOptions {
            kv_bytes: 1000,
            ..options
        }),
        Some("KV pool: 1000 bytes of KV hold no block: one takes 8192 bytes".into())
    );
    assert_eq!(
        refused(EngineOptions {
            step_token_max: 0,
            weights: WeightFormat::Stored,
            ..options
        }),
        Some("step_token_max is 0; use at least 1".into())
    );
}

#[test]
fn memory_is_counted_as_the_weights_will_be_kept() {
    let directory = tempfile::tempdir().unwrap();
    let model = TestModel {
        tied: false,
        ..TestModel::default()
    };
    model.write_hugging_face(directory.path()).unwrap();
    let source = ModelSource::open(directory.path()).unwrap();
    let footprint = |weights| {
        let options = EngineOptions {
            weights,
            ..common::options(16, KvDtype::F32, 1)
        };
        Footprint::of(&source, &options).unwrap()
    };
    // By hand: embedding and head, two layers of attention and MLP, and five norms of 64 in f32 whatever the format. All rows are whole
    // panels.
    let matrices = 2 * 128 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64);
    let norms = 5 * 64 * 4;
    let stored = footprint(WeightFormat::Stored);
    assert_eq!(stored.weights, matrices * 4 + norms);
    assert_eq!(stored.kv, 1 << 20);
    // A panel of 16 rows and 96 columns ends in the middle of a cache line: 32 bytes more for each of the 4 of both down projections.
    let padding = 2 * 4 * 32;
    assert_eq!(
        footprint(WeightFormat::Q8_0).weights,
        matrices / 32 * 34 + norms + padding
    );
    assert_eq!(footprint(WeightFormat::Bf16).weights, matrices * 2 + norms);
    assert!(stored.scratch > 64 * 128 * 4 && stored.peak() > stored.weights + stored.kv);
    let engine = load(directory.path(), common::options(16, KvDtype::F32, 1)).unwrap();
    let looked_up = 128 * 64 * 4;
    assert_eq!(
        engine.weight_bytes_per_step() as u64,
        stored.weights - norms - looked_up
    );
}
