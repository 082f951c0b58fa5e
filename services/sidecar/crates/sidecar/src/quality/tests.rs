//! The instrument on a model of noise: what must be the same is, what must differ does.

use super::*;
use kvasir_engine::{EngineOptions, KvDtype, WeightFormat};
use kvasir_model::ModelSource;

fn lab() -> Lab {
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/tied-f32");
    let options = EngineOptions {
        kv_bytes: 4 << 20,
        block_size: 16,
        kv_dtype: KvDtype::F32,
        shard_count: 1,
        threads: 1,
        step_token_max: 64,
        weights: WeightFormat::Stored,
    };
    let source = ModelSource::open(&fixture).expect("a fixture");
    Lab::new(Engine::load(&source, options, &mut |_, _| {}).expect("an engine"))
}

fn item(documents: &[usize], prefix: usize) -> Item {
    let tokens = |seed: usize, count: usize| (0..count).map(|i| ((i * 7 + seed * 13 + i * i) % 60) as u32).collect();
    Item {
        id: "x".into(),
        prefix: tokens(1, prefix),
        documents: documents
            .iter()
            .enumerate()
            .map(|(i, count)| tokens(i + 2, *count))
            .collect(),
        suffix: tokens(9, 6),
        max_tokens: 8,
        stop_token_ids: Vec::new(),
    }
}

fn measured(item: &Item, name: &str) -> Outcome {
    let mut lab = lab();
    let reference = lab.reference(item).expect("a full pass");
    let (_, method) = METHODS.iter().find(|(known, _)| *known == name).expect("a method");
    lab.measure(item, *method, &reference).expect("a measurement")
}

#[test]
fn a_full_pass_differs_from_itself_by_nothing() {
    let outcome = measured(&item(&[20, 33, 17], 5), "full");
    assert_eq!(outcome.kl, vec![0.0; 8]);
    assert_eq!(
        (outcome.agreements, outcome.identical, outcome.computed_tokens),
        (8, true, 75)
    );
}

#[test]
fn one_document_without_anything_before_it_is_as_good_alone() {
    let item = item(&[40], 0);
    assert_eq!(measured(&item, "alone").kl, vec![0.0; 8]);
    assert_eq!(measured(&item, "alone").computed_tokens, 0);
}

#[test]
fn a_document_encoded_after_the_prefix_it_follows_is_as_good_as_a_full_pass() {
    let outcome = measured(&item(&[40], 11), "after-prefix");
    assert!(outcome.kl.iter().all(|kl| *kl < 1e-9), "{:?}", outcome.kl);
    assert!(outcome.identical);
}

#[test]
fn what_is_lost_is_seen_and_what_is_computed_counts() {
    let item = item(&[40, 40, 40], 4);
    let total = |name: &str| measured(&item, name).kl.iter().sum::<f64>();
    let (alone, unturned) = (total("alone"), total("alone-unturned"));
    assert!(alone > 1e-6 && unturned > alone, "{alone} {unturned}");
    assert_eq!(measured(&item, "alone").computed_tokens, 4);
    // 15 % of the second and the third document.
    assert_eq!(measured(&item, "seams").computed_tokens, 4 + 6 + 6);
}

#[test]
fn an_item_that_cannot_be_measured_is_refused_with_its_line() {
    let lab = lab();
    let refused = |item: &Item| check(item, lab.engine(), 3).expect_err("too much").to_string();
    assert!(refused(&item(&[0], 1)).starts_with("line 3: suffix, max_tokens"));
    assert!(refused(&item(&[100_000], 1)).starts_with("line 3: 100015 tokens; at most"));
}
