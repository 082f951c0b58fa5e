//! KV that was encoded alone, at another place of another text.
#![allow(clippy::unwrap_used)]

mod common;

use common::{engine, options, plan, prompt, slice, start};
use kvasir_engine::{Engine, KvDtype, Placement, SamplingParams, StepError, WeightType};
use proptest::prelude::*;

/// Logits after the last token of `tokens`, computed on the KV before them.
fn last_logits(engine: &mut Engine, tokens: &[u32], start: usize, blocks: &[u32]) -> Vec<f32> {
    engine.probe(tokens, start, blocks, &[tokens.len() - 1]).unwrap()
}

fn place(engine: &mut Engine, placement: Placement) -> Result<(), StepError> {
    let mut step = plan(Vec::new(), Vec::new());
    step.placements = vec![placement];
    engine.step(&step).map(|_| ())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_text_at_shifted_positions_says_the_same(
        length in 1usize..60, offset in 0usize..40, shift in 0usize..120, block_size in prop_oneof![Just(16usize), Just(32)],
    ) {
        let mut engine = engine(WeightType::F32, options(block_size, KvDtype::F32, 1));
        let (text, question) = (prompt(3, length), prompt(8, 5));
        let alone: Vec<u32> = (0..8).collect();
        let moved: Vec<u32> = (8..24).rev().collect();
        engine.probe(&text, 0, &alone, &[]).unwrap();
        let expected = last_logits(&mut engine, &question, length, &alone);
        engine.probe(&text, 0, &alone, &[]).unwrap();
        // Rotary embedding knows distances only: with nothing before the text, where it stands makes no difference. The table's own places
        // and the positions differ by `offset`, so the run is unaligned on both sides.
        place(&mut engine, Placement {
            source_block_ids: alone.clone(), source_start: 0, target_block_ids: moved.clone(), target_start: offset as u32,
            token_count: length as u32, position_shift: 0,
        }).unwrap();
        place(&mut engine, Placement {
            source_block_ids: moved, source_start: offset as u32, target_block_ids: (24..32).collect(), target_start: 0,
            token_count: length as u32, position_shift: shift as i64,
        }).unwrap();
        place(&mut engine, Placement {
            source_block_ids: (24..32).collect(), source_start: 0, target_block_ids: (32..40).collect(), target_start: 0,
            token_count: length as u32, position_shift: -(shift as i64),
        }).unwrap();
        let blocks: Vec<u32> = (32..40).collect();
        let back = last_logits(&mut engine, &question, length, &blocks);
        for (ours, theirs) in back.iter().zip(&expected) {
            prop_assert!((ours - theirs).abs() < 1e-3, "{} {}", ours, theirs);
        }
    }
}

#[test]
fn placed_keys_are_those_of_the_new_positions() {
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
        let mut engine = engine(WeightType::F32, options(16, dtype, 2));
        let (before, text) = (prompt(1, 21), prompt(3, 30));
        // The first layer's keys depend on token and position only: `text` after `before` and `text` placed there have the same.
        let whole: Vec<u32> = (0..4).collect();
        engine
            .probe(&[before.clone(), text.clone()].concat(), 0, &whole, &[])
            .unwrap();
        let alone = [10, 11];
        engine.probe(&text, 0, &alone, &[]).unwrap();
        place(
            &mut engine,
            Placement {
                source_block_ids: alone.to_vec(),
                source_start: 0,
                target_block_ids: vec![20, 21, 22, 23],
                target_start: 21,
                token_count: 30,
                position_shift: 21,
            },
        )
        .unwrap();
        let pool = engine.pool();
        let (mut computed, mut placed) = (Vec::new(), Vec::new());
        pool.shards()[0].gather(2, 0..16, 0..1, 0..2, &mut computed).unwrap();
        pool.shards()[0].gather(22, 0..16, 0..1, 0..2, &mut placed).unwrap();
        let values = |bytes: &[u8]| -> Vec<f32> {
            match dtype {
                KvDtype::F32 => bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                KvDtype::F16 => bytes
                    .chunks_exact(2)
                    .map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32())
                    .collect(),
                KvDtype::Bf16 => bytes
                    .chunks_exact(2)
                    .map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
                    .collect(),
            }
        };
        let (computed, placed) = (values(&computed), values(&placed));
        let largest = computed.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let tolerance = largest
            * match dtype {
                KvDtype::F32 => 1e-5,
                KvDtype::F16 => 1.0 / 512.0,
                KvDtype::Bf16 => 1.0 / 64.0,
            };
        for (a, b) in computed.iter().zip(&placed) {
            assert!((a - b).abs() <= tolerance, "{dtype:?}: {a} {b}");
        }
    }
}

#[test]
fn a_refused_placement_changes_nothing() {
    let mut engine = engine(WeightType::F32, options(16, KvDtype::F32, 1));
    let text = prompt(3, 20);
    let good = Placement {
        source_block_ids: vec![0, 1],
        source_start: 0,
        target_block_ids: vec![2, 3],
        target_start: 0,
        token_count: 20,
        position_shift: 5,
    };
    engine.probe(&text, 0, &[0, 1], &[]).unwrap();
    for (wrong, needle) in [
        (
            Placement {
                token_count: 33,
                ..good.clone()
            },
            "placement 1: tokens 0..33",
        ),
        (
            Placement {
                target_block_ids: vec![1, 3],
                ..good.clone()
            },
            "placement 1: block 1 would be read and written",
        ),
        (
            Placement {
                source_block_ids: vec![0, 9999],
                ..good.clone()
            },
            "placement 1: block 9999 does not exist",
        ),
    ] {
        let sampling = SamplingParams::default();
        let mut step = plan(vec![start(1, 20, sampling, vec![5, 6])], vec![slice(1, 0, &text, true)]);
        step.placements = vec![good.clone(), wrong];
        let message = engine.step(&step).unwrap_err().to_string();
        assert!(message.contains(needle), "{message}");
        assert_eq!(engine.sequence_count(), 0);
        let (mut target, zero) = (Vec::new(), vec![0; 16 * engine.pool().bytes_per_token()]);
        engine.pool().shards()[0]
            .gather(2, 0..16, 0..engine.layout().layer_count as u32, 0..2, &mut target)
            .unwrap();
        assert_eq!(target, zero, "not even the first placement was done");
    }
}
