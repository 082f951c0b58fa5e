//! What rounding KV on its way means: the bits that a narrower pool stores for the same computed values, and what it computes from them.

mod common;

use common::{engine, options, plan, prompt, slice, start};
use kvasir_engine::{Isa, KvDtype, SamplingParams, WeightType};
use kvasir_kernels::convert;

/// KV of one layer of a prompt of 16 tokens.
fn layer(dtype: KvDtype, layer: u32) -> Vec<u8> {
    let mut engine = engine(WeightType::F32, options(16, dtype, 1));
    let tokens = prompt(4, 16);
    let sampling = SamplingParams {
        max_tokens: 1,
        ..Default::default()
    };
    let step = plan(
        vec![start(1, 16, sampling, vec![3, 4])],
        vec![slice(1, 0, &tokens, true)],
    );
    engine.step(&step).unwrap();
    let mut bytes = Vec::new();
    let pool = engine.pool();
    pool.shards()[0]
        .gather(3, 0..16, layer..layer + 1, 0..2, &mut bytes)
        .unwrap();
    bytes
}

#[test]
fn rounded_kv_is_what_a_narrower_worker_stores_in_the_first_layer_only() {
    for narrow in [KvDtype::F16, KvDtype::Bf16] {
        let rounded = |index| {
            let mut bytes = Vec::new();
            convert(
                Isa::detect(),
                KvDtype::F32,
                &layer(KvDtype::F32, index),
                narrow,
                &mut bytes,
            );
            bytes
        };
        // The first layer's keys and values follow from the tokens alone.
        assert_eq!(rounded(0), layer(narrow, 0), "{narrow:?}");
        // Later ones follow from attention over the KV that was stored, which is rounded here and not there.
        assert_ne!(rounded(1), layer(narrow, 1), "{narrow:?}");
    }
}
