//! The whole transformer beside the CPU engine.

use crate::tiny::{VOCAB, backend, engine, families, prompt};
use kvasir_cuda::{CudaBackend, Division};
use kvasir_engine::{Backend, Engine, Placement, SamplingParams, SequenceStart, Slice, StepPlan};
use kvasir_kernels::{AlignedF32, Span};

/// Log-probabilities of every place of a prompt, and what comes after it, by one engine.
fn scores(engine: &mut Engine, chunks: &[usize], tokens: &[u32]) -> (Vec<f32>, Vec<u32>) {
    let blocks: Vec<u32> = (0..24).collect();
    let mut start_position = 0;
    let mut starts = vec![SequenceStart {
        sequence_id: 1,
        prompt_token_count: tokens.len() as u32,
        sampling: SamplingParams {
            max_tokens: 8,
            prompt_logprobs: Some(0),
            ..SamplingParams::default()
        },
        block_ids: blocks,
        prompt_token_ids: tokens.to_vec(),
    }];
    let (mut logprobs, mut generated) = (Vec::new(), Vec::new());
    let mut steps: Vec<(u32, Vec<u32>, bool)> = Vec::new();
    for count in chunks {
        let end = start_position as usize + count;
        steps.push((
            start_position,
            tokens[start_position as usize..end].to_vec(),
            end == tokens.len(),
        ));
        start_position = end as u32;
    }
    steps.extend((0..7).map(|i| (start_position + i, Vec::new(), true)));
    for (start, token_ids, sample) in steps {
        let slice = Slice {
            sequence_id: 1,
            start_position: start,
            token_count: token_ids.len().max(1) as u32,
            token_ids,
            sample,
            ..Slice::default()
        };
        let plan = StepPlan {
            starts: std::mem::take(&mut starts),
            slices: vec![slice],
            ..StepPlan::default()
        };
        for result in engine.step(&plan).unwrap().results {
            let Some(token) = result.token else { continue };
            logprobs.extend(token.prompt_logprobs.iter().map(|p| p.logprob));
            generated.push(token.token_id);
        }
    }
    (logprobs, generated)
}

#[test]
fn every_family_scores_a_prompt_as_the_cpu_engine_does() {
    for config in families() {
        let tokens = prompt(70, 5);
        let (expected, _) = scores(&mut engine(&config, None), &[70], &tokens);
        let (found, _) = scores(&mut engine(&config, Some(Division::FAST)), &[33, 37], &tokens);
        assert_eq!((found.len(), expected.len()), (69, 69));
        let worst = found
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        // Activations round to bf16 before each of 8 products, which the CPU multiplies in f32.
        assert!(worst < 0.08, "log-probabilities differ by {worst}");
        let mean = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum::<f32>() / 69.0;
        assert!(mean < 0.02, "log-probabilities differ by {mean} on average");
    }
}

#[test]
fn a_deterministic_device_gives_the_same_bits_whatever_the_chunks_and_the_batch() {
    let config = &families()[1];
    let tokens = prompt(40, 9);
    let all = scores(&mut engine(config, Some(Division::DETERMINISTIC)), &[40], &tokens);
    assert_eq!(all.1.len(), 8);
    for chunks in [&[1, 39][..], &[17, 1, 1, 21]] {
        assert_eq!(
            scores(&mut engine(config, Some(Division::DETERMINISTIC)), chunks, &tokens),
            all
        );
    }
    let mut device = backend(config, Division::DETERMINISTIC, true, 4);
    let blocks = [vec![0, 1, 2], vec![3, 4, 5]];
    let run = |device: &mut CudaBackend, order: &[usize]| {
        let span = |i: &usize| Span {
            start_position: 0,
            token_count: 40,
            blocks: &blocks[*i],
        };
        let ids: Vec<u32> = order.iter().flat_map(|i| prompt(40, 9 + *i as u64)).collect();
        let mut logits = AlignedF32::default();
        let rows: Vec<usize> = (1..=order.len()).map(|i| 40 * i - 1).collect();
        device
            .forward(
                &ids,
                order.iter().map(span).collect(),
                &rows,
                &mut logits,
                &mut |layers| assert_eq!(layers, 2),
            )
            .unwrap();
        logits.to_vec()
    };
    let alone = run(&mut device, &[0]);
    assert_eq!(run(&mut device, &[0, 1])[..VOCAB], alone);
    assert_eq!(run(&mut device, &[1, 0])[VOCAB..], alone);
}

#[test]
fn kv_moves_between_devices_and_within_one() {
    let config = &families()[0];
    let tokens = prompt(40, 2);
    let (mut here, mut there) = (engine(config, Some(Division::FAST)), engine(config, None));
    let run = |engine: &mut Engine, placements: Vec<Placement>, id: u64, from: u32, blocks: &[u32]| {
        let plan = StepPlan {
            placements,
            starts: vec![SequenceStart {
                sequence_id: id,
                prompt_token_count: 40,
                sampling: SamplingParams {
                    logprobs: true,
                    ..SamplingParams::default()
                },
                block_ids: blocks.to_vec(),
                ..SequenceStart::default()
            }],
            slices: vec![Slice {
                sequence_id: id,
                start_position: from,
                token_count: 40 - from,
                token_ids: tokens[from as usize..].to_vec(),
                sample: true,
                ..Slice::default()
            }],
            ..StepPlan::default()
        };
        engine.step(&plan).unwrap().results[0].token.clone().unwrap()
    };
    let first = run(&mut here, Vec::new(), 1, 0, &[4, 5, 6]);
    for block in [4, 5, 6] {
        let (mut bytes, count) = (Vec::new(), if block == 6 { 7 } else { 16 });
        here.pool().shards()[0]
            .gather(block, 0..count, 0..2, 0..2, &mut bytes)
            .unwrap();
        there.pool().shards()[0]
            .scatter(block - 3, 0..count, 0..2, 0..2, &bytes)
            .unwrap();
    }
    // The last token is computed by the CPU over the device's KV, and by the device over its own, put to another place.
    let cpu = run(&mut there, Vec::new(), 1, 39, &[1, 2, 3]);
    assert_eq!(cpu.token_id, first.token_id);
    assert!((cpu.logprob.unwrap() - first.logprob.unwrap()).abs() < 0.08);
    let copy = Placement {
        source_block_ids: vec![4, 5, 6],
        target_block_ids: vec![9, 8, 7],
        token_count: 39,
        ..Placement::default()
    };
    let again = run(&mut here, vec![copy], 2, 39, &[9, 8, 7]);
    assert_eq!(again.token_id, first.token_id);
    assert!((again.logprob.unwrap() - first.logprob.unwrap()).abs() < 0.02);
    // And back from the CPU.
    let mut bytes = Vec::new();
    there.pool().shards()[0]
        .gather(1, 0..16, 0..2, 0..2, &mut bytes)
        .unwrap();
    here.pool().shards()[0].scatter(20, 0..16, 0..2, 0..2, &bytes).unwrap();
    let mut back = Vec::new();
    here.pool().shards()[0]
        .gather(20, 0..16, 0..2, 0..2, &mut back)
        .unwrap();
    assert_eq!(back, bytes);
}
