//! The promise: bits do not depend on the batch, the chunks, the blocks, the shards or the threads.

mod common;

use common::{engine, generate, options, plan, prompt, slice, start};
use kvasir_engine::{EngineOptions, KvDtype, SamplingParams, SliceOutcome, StepPlan, WeightType};
use proptest::prelude::*;

const KINDS: [(WeightType, KvDtype); 7] = [
    (WeightType::F32, KvDtype::F32),
    (WeightType::Bf16, KvDtype::Bf16),
    (WeightType::Bf16Pairs, KvDtype::Bf16),
    (WeightType::Q4_1, KvDtype::Bf16),
    (WeightType::Q4_1, KvDtype::F32),
    (WeightType::F32, KvDtype::Bf16),
    (WeightType::Q8_0, KvDtype::F16),
];

/// A request of the random schedule.
#[derive(Debug, Clone)]
struct Request {
    prompt: Vec<u32>,
    sampling: SamplingParams,
}

fn request() -> impl Strategy<Value = Request> {
    (
        1_usize..90,
        1_u32..12,
        any::<u64>(),
        prop_oneof![Just(0.0_f32), Just(0.9)],
    )
        .prop_map(|(length, max_tokens, seed, temperature)| Request {
            prompt: prompt(seed, length),
            // All log-probabilities that can be asked for: they show the logits' bits.
            sampling: SamplingParams {
                temperature,
                max_tokens,
                seed,
                logprobs: true,
                top_logprobs: 20,
                ..Default::default()
            },
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn logits_have_the_same_bits_whatever_the_chunk_block_shards_and_threads(
        kind in 0..KINDS.len(), length in 1_usize..150, seed in any::<u64>(), chunk in 1_usize..160,
        block_size in prop_oneof![Just(16_usize), Just(32), Just(64)], threads in 1_usize..=3,
        shard_count in 1_usize..=2,
    ) {
        let (weight_type, kv_dtype) = KINDS[kind];
        let tokens = prompt(seed, length);
        let bits = |block_size, threads, chunk, shard_count| -> Vec<u32> {
            let options = EngineOptions { shard_count, ..options(block_size, kv_dtype, threads) };
            let mut engine = engine(weight_type, options);
            engine.logits(&tokens, chunk).unwrap().into_iter().map(f32::to_bits).collect()
        };
        prop_assert!(bits(block_size, threads, chunk, shard_count) == bits(32, 1, 512, 1));
    }

    #[test]
    fn requests_get_the_same_tokens_and_probabilities_in_any_batch(
        kind in 0..KINDS.len(), requests in prop::collection::vec(request(), 1..6),
        choices in prop::collection::vec(any::<u16>(), 400),
        block_size in prop_oneof![Just(16_usize), Just(32), Just(64)], threads in 1_usize..=3,
        shard_count in 1_usize..=2,
    ) {
        let (weight_type, kv_dtype) = KINDS[kind];
        let mut alone = engine(weight_type, options(32, kv_dtype, 1));
        let expected: Vec<_> = requests.iter().map(|request| run_alone(&mut alone, request)).collect();
        let options = EngineOptions { shard_count, ..options(block_size, kv_dtype, threads) };
        let mut together = engine(weight_type, options);
        let found = run_together(&mut together, &requests, block_size, choices.into_iter());
        prop_assert_eq!(found, expected);
    }
}

type Tokens = Vec<kvasir_engine::SampledToken>;

fn run_alone(engine: &mut kvasir_engine::Engine, request: &Request) -> Tokens {
    run_together(engine, std::slice::from_ref(request), 32, std::iter::repeat(u16::MAX)).remove(0)
}

/// Random steps: each gives some sequences a chunk of random size or a decode, until all have ended. `u16::MAX` takes everything.
fn run_together(
    engine: &mut kvasir_engine::Engine,
    requests: &[Request],
    block_size: usize,
    mut choices: impl Iterator<Item = u16>,
) -> Vec<Tokens> {
    let mut outputs: Vec<Tokens> = vec![Vec::new(); requests.len()];
    let mut positions = vec![0; requests.len()];
    let mut ended = vec![false; requests.len()];
    let mut free_block = 0;
    while ended.contains(&false) {
        let mut step = StepPlan::default();
        for (id, request) in requests.iter().enumerate() {
            let choice = usize::from(choices.next().unwrap_or(u16::MAX));
            if ended[id] || choice % 4 == 0 {
                continue;
            }
            let (position, length) = (positions[id], request.prompt.len());
            if position == 0 {
                step.starts
                    .push(start(id as u64, length, request.sampling.clone(), Vec::new()));
            }
            let mut slice = if position < length {
                let end = (position + 1 + choice / 4 % 97)
                    .min(length)
                    .max(if choice == 0xffff { length } else { 0 });
                slice(id as u64, position, &request.prompt[position..end], end == length)
            } else {
                common::next(id as u64, position)
            };
            positions[id] += slice.token_count as usize;
            while positions[id]
                > position.div_ceil(block_size) * block_size + slice.appended_block_ids.len() * block_size
            {
                slice.appended_block_ids.push(free_block);
                free_block += 1;
            }
            step.slices.push(slice);
        }
        for result in engine.step(&step).unwrap().results {
            let id = result.sequence_id as usize;
            outputs[id].extend(result.token);
            ended[id] = result.outcome == SliceOutcome::Stopped;
        }
    }
    engine.reset();
    outputs
}

#[test]
fn a_sequence_continues_on_kv_that_came_from_another_engine() {
    for (weight_type, kv_dtype) in KINDS {
        let (mut source, mut target) = (
            engine(weight_type, options(32, kv_dtype, 1)),
            engine(weight_type, options(32, kv_dtype, 2)),
        );
        let prompt = prompt(5, 77);
        let sampling = SamplingParams {
            temperature: 0.8,
            max_tokens: 20,
            seed: 3,
            ..Default::default()
        };
        let expected = generate(&mut source, &prompt, &sampling);

        let first = plan(
            vec![start(1, 77, sampling.clone(), vec![4, 2, 9])],
            vec![slice(1, 0, &prompt, true)],
        );
        let first = source.step(&first).unwrap().results.remove(0).token.unwrap().token_id;
        let (from, to) = (source.pool(), target.pool());
        for (index, (source_block, target_block)) in [(4, 11), (2, 0), (9, 5)].into_iter().enumerate() {
            let tokens = 0..(77 - 32 * index as u32).min(32);
            let mut data = Vec::new();
            from.shards()[0]
                .gather(source_block, tokens.clone(), 0..2, 0..2, &mut data)
                .unwrap();
            to.shards()[0].scatter(target_block, tokens, 0..2, 0..2, &data).unwrap();
        }
        let mut tokens = vec![first];
        let mut step = plan(
            vec![start(7, 77, sampling, vec![11, 0, 5, 1])],
            vec![slice(7, 77, &[first], true)],
        );
        for position in 78.. {
            let output = target.step(&step).unwrap();
            assert_eq!((output.prompt_tokens, output.decode_tokens), (0, 1));
            tokens.push(output.results[0].token.as_ref().unwrap().token_id);
            if output.results[0].outcome == SliceOutcome::Stopped {
                break;
            }
            step = plan(Vec::new(), vec![common::next(7, position)]);
        }
        assert_eq!(tokens, expected, "{weight_type:?} {kv_dtype:?}");
    }
}
