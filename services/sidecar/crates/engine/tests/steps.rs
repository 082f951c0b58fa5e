//! What a step accepts, refuses and answers.

mod common;

use common::{CONTEXT, VOCAB, engine, generate, next, options, plan, prompt, slice, start};
use kvasir_engine::{Engine, KvDtype, SamplingParams, SliceOutcome, StepError, StepPlan, WeightType};

fn f32_engine() -> Engine {
    engine(WeightType::F32, options(16, KvDtype::F32, 1))
}

fn sampling(max_tokens: u32) -> SamplingParams {
    SamplingParams {
        max_tokens,
        ..Default::default()
    }
}

fn outcomes(engine: &mut Engine, step: &StepPlan) -> Vec<SliceOutcome> {
    engine
        .step(step)
        .unwrap()
        .results
        .iter()
        .map(|result| result.outcome)
        .collect()
}

#[test]
fn a_sequence_stops_at_max_tokens_and_is_skipped_afterwards() {
    let mut engine = f32_engine();
    let step = plan(
        vec![start(1, 3, sampling(2), vec![0])],
        vec![slice(1, 0, &[5, 6, 7], true)],
    );
    assert_eq!(outcomes(&mut engine, &step), [SliceOutcome::Sampled]);
    assert_eq!(
        outcomes(&mut engine, &plan(vec![], vec![next(1, 3)])),
        [SliceOutcome::Stopped]
    );
    // What was already on its way is skipped, whatever it says.
    let output = engine.step(&plan(vec![], vec![next(1, 4)])).unwrap();
    assert_eq!(output.results[0].outcome, SliceOutcome::Skipped);
    assert_eq!((output.prompt_tokens, output.decode_tokens), (0, 0));
    assert_eq!(engine.sequence_count(), 1);
    engine
        .step(&StepPlan {
            placements: Vec::new(),
            dropped: vec![1, 99],
            ..Default::default()
        })
        .unwrap();
    assert_eq!(engine.sequence_count(), 0);
}

#[test]
fn a_stop_token_ends_a_sequence_and_is_reported() {
    let mut engine = f32_engine();
    let prompt = prompt(1, 20);
    let free = generate(&mut engine, &prompt, &sampling(10));
    let stop = free[4];
    let first = free.iter().position(|token| *token == stop).unwrap();
    let stopped = generate(
        &mut engine,
        &prompt,
        &SamplingParams {
            stop_token_ids: vec![VOCAB as u32, stop],
            ..sampling(10)
        },
    );
    assert_eq!(stopped, free[..=first]);
}

#[test]
fn the_end_of_the_context_stops_a_sequence() {
    let mut engine = f32_engine();
    let prompt = prompt(2, CONTEXT - 2);
    assert_eq!(generate(&mut engine, &prompt, &sampling(100)).len(), 3);
}

#[test]
fn prompts_and_decodes_share_a_step_and_are_counted_apart() {
    let mut engine = f32_engine();
    let step = plan(
        vec![start(1, 2, sampling(9), vec![0])],
        vec![slice(1, 0, &[1, 2], true)],
    );
    engine.step(&step).unwrap();
    let step = plan(
        vec![start(2, 30, sampling(9), vec![1, 2])],
        vec![next(1, 2), slice(2, 0, &prompt(3, 20), false)],
    );
    let output = engine.step(&step).unwrap();
    assert_eq!((output.prompt_tokens, output.decode_tokens), (20, 1));
    assert_eq!(output.results[1].outcome, SliceOutcome::Computed);
    assert_eq!(output.results[1].token, None);
}

#[test]
fn a_step_larger_than_a_pass_gives_the_same_tokens() {
    let mut engine = engine(WeightType::Q4_1, common::options(16, KvDtype::Bf16, 2));
    let mut large = common::options(16, KvDtype::Bf16, 2);
    large.step_token_max = 4096;
    let mut at_once = common::engine(WeightType::Q4_1, large);
    let prompts: Vec<Vec<u32>> = (0..5).map(|seed| prompt(seed, 200 + seed as usize)).collect();
    let expected: Vec<u32> = prompts
        .iter()
        .map(|prompt| generate(&mut engine, prompt, &sampling(1))[0])
        .collect();
    let mut step = StepPlan::default();
    for (id, prompt) in prompts.iter().enumerate() {
        let blocks = (id as u32 * 13..id as u32 * 13 + 13).collect();
        step.starts.push(start(id as u64, prompt.len(), sampling(1), blocks));
        step.slices.push(slice(id as u64, 0, prompt, true));
    }
    let results = at_once.step(&step).unwrap().results;
    let tokens: Vec<u32> = results
        .iter()
        .map(|result| result.token.as_ref().unwrap().token_id)
        .collect();
    assert_eq!(tokens, expected);
}

#[test]
fn refused_steps_name_the_sequence_and_the_numbers_and_change_nothing() {
    let mut engine = f32_engine();
    let blocks = engine.pool().block_count();
    let known = plan(
        vec![start(1, 10, sampling(9), vec![0])],
        vec![slice(1, 0, &[1, 2, 3], false)],
    );
    engine.step(&known).unwrap();
    let one = |sampling| start(2, 4, sampling, vec![1]);
    let invalid = |field, value: &str, remedy: &str| StepError::InvalidStart {
        sequence_id: 2,
        field,
        value: value.into(),
        remedy: remedy.into(),
    };
    let mut short = slice(1, 3, &[1, 2], false);
    short.token_count = 3;
    let mut empty = slice(1, 3, &[], false);
    empty.token_count = 0;
    let nan = SamplingParams {
        temperature: f32::NAN,
        ..sampling(1)
    };
    let cases = [
        (
            plan(vec![], vec![next(3, 0)]),
            StepError::UnknownSequence { sequence_id: 3 },
        ),
        (
            StepPlan {
                placements: Vec::new(),
                dropped: vec![1],
                ..plan(vec![], vec![slice(1, 3, &[1], false)])
            },
            StepError::UnknownSequence { sequence_id: 1 },
        ),
        (
            plan(vec![start(1, 1, sampling(1), vec![])], vec![]),
            StepError::SequenceExists { sequence_id: 1 },
        ),
        (
            plan(vec![one(sampling(1)), one(sampling(1))], vec![]),
            StepError::SequenceExists { sequence_id: 2 },
        ),
        (
            plan(vec![], vec![slice(1, 3, &[1], false), slice(1, 4, &[1], false)]),
            StepError::RepeatedSlice { sequence_id: 1 },
        ),
        (plan(vec![], vec![empty]), StepError::EmptySlice { sequence_id: 1 }),
        (
            // Within the prompt what is skipped may be there already; beyond it nothing is.
            plan(vec![], vec![slice(1, 10, &[1], false)]),
            StepError::PositionGap {
                sequence_id: 1,
                expected: 3,
                found: 10,
            },
        ),
        (
            // The output at position 4 would not be known to sampling.
            plan(vec![one(sampling(1))], vec![slice(2, 5, &[1], true)]),
            StepError::PositionGap {
                sequence_id: 2,
                expected: 4,
                found: 5,
            },
        ),
        (
            plan(vec![], vec![slice(1, 2, &[1], false)]),
            StepError::PositionGap {
                sequence_id: 1,
                expected: 3,
                found: 2,
            },
        ),
        (
            plan(vec![], vec![short]),
            StepError::TokenCountMismatch {
                sequence_id: 1,
                token_ids: 2,
                token_count: 3,
            },
        ),
        (
            plan(vec![], vec![next(1, 3)]),
            StepError::NoSampledToken {
                sequence_id: 1,
                position: 3,
            },
        ),
        (
            plan(vec![], vec![slice(1, 3, &[83], false)]),
            StepError::UnknownToken {
                sequence_id: 1,
                token_id: 83,
                vocab_size: 83,
            },
        ),
        (
            plan(vec![], vec![slice(1, 3, &[1; 14], true)]),
            StepError::MissingBlocks {
                sequence_id: 1,
                blocks: 1,
                block_size: 16,
                last_position: 16,
            },
        ),
        (
            plan(
                vec![start(2, 4, sampling(1), vec![blocks])],
                vec![slice(2, 0, &[1], false)],
            ),
            StepError::UnknownBlock {
                sequence_id: 2,
                block: blocks,
                block_count: blocks,
            },
        ),
        (
            plan(
                vec![start(2, 4, sampling(1), vec![0])],
                vec![slice(1, 3, &[1], false), slice(2, 0, &[1], false)],
            ),
            StepError::BlockWrittenTwice {
                sequence_id: 2,
                block: 0,
            },
        ),
        (
            plan(
                vec![start(2, 256, sampling(1), vec![1])],
                vec![slice(2, 255, &[1, 2], false)],
            ),
            StepError::ContextExceeded {
                sequence_id: 2,
                last_position: 256,
                context_length: 256,
            },
        ),
        (
            plan(vec![], vec![slice(1, 3, &[1], true)]),
            StepError::SampleInsidePrompt {
                sequence_id: 1,
                last_position: 3,
                prompt_token_count: 10,
            },
        ),
        (
            plan(vec![one(nan)], vec![]),
            invalid("temperature", "NaN", "use 0 (greedy) to 2"),
        ),
        (
            plan(
                vec![one(SamplingParams {
                    top_p: 1.5,
                    ..sampling(1)
                })],
                vec![],
            ),
            invalid("top_p", "1.5", "use 0 to 1"),
        ),
        (
            plan(vec![one(sampling(0))], vec![]),
            invalid("max_tokens", "0", "use at least 1"),
        ),
        (
            plan(
                vec![one(SamplingParams {
                    top_logprobs: 21,
                    ..sampling(1)
                })],
                vec![],
            ),
            invalid("top_logprobs", "21", "use at most 20"),
        ),
        (
            plan(vec![start(2, 257, sampling(1), vec![])], vec![]),
            StepError::InvalidStart {
                sequence_id: 2,
                field: "prompt_token_count",
                value: "257".into(),
                remedy: "use 1 to 256".into(),
            },
        ),
    ];
    for (step, expected) in cases {
        assert_eq!(engine.step(&step), Err(expected));
        assert_eq!(engine.sequence_count(), 1);
    }
    // The sequence goes on where it was.
    assert_eq!(
        outcomes(&mut engine, &plan(vec![], vec![slice(1, 3, &[4; 7], true)])),
        [SliceOutcome::Sampled]
    );
}

#[test]
fn a_step_beyond_its_token_limit_is_refused() {
    let mut small = options(16, KvDtype::F32, 1);
    small.step_token_max = 8;
    let mut engine = engine(WeightType::F32, small);
    let step = plan(
        vec![start(1, 9, sampling(1), vec![0])],
        vec![slice(1, 0, &[1; 9], true)],
    );
    assert_eq!(
        engine.step(&step),
        Err(StepError::TooManyTokens {
            tokens: 9,
            step_token_max: 8
        })
    );
}

#[test]
fn a_watcher_hears_of_each_layer_once_its_kv_is_in_place() {
    let mut engine = f32_engine();
    let (long, short) = (prompt(1, 40), prompt(2, 7));
    let step = plan(
        vec![
            start(1, 40, sampling(2), vec![0, 1, 2]),
            start(2, 9, sampling(2), vec![3]),
        ],
        vec![slice(1, 0, &long, true), slice(2, 0, &short, false)],
    );
    let (pool, mut heard) = (engine.pool(), Vec::new());
    let mut seen = vec![Vec::new(); 2];
    engine
        .step_watched(&step, &mut |ends, layers| {
            heard.push((ends.to_vec(), layers));
            let layer = layers as u32 - 1;
            pool.shards()[0]
                .gather(2, 0..8, layer..layer + 1, 0..2, &mut seen[layer as usize])
                .unwrap();
        })
        .unwrap();
    let ends = vec![(1, 40), (2, 7)];
    assert_eq!(heard, [(ends.clone(), 1), (ends, 2)]);
    for layer in 0..2 {
        let mut after = Vec::new();
        pool.shards()[0]
            .gather(2, 0..8, layer..layer + 1, 0..2, &mut after)
            .unwrap();
        assert_eq!(seen[layer as usize], after, "what was told is what stays");
        assert!(after.iter().any(|byte| *byte != 0));
    }
}

#[test]
fn a_prompt_goes_on_behind_kv_that_is_there_already_and_says_the_same() {
    let sampling = SamplingParams {
        max_tokens: 2,
        logprobs: true,
        top_logprobs: 20,
        ..Default::default()
    };
    let tokens = prompt(5, 60);
    let mut engine = engine(WeightType::Bf16, options(16, KvDtype::Bf16, 1));
    let whole = plan(
        vec![start(1, 60, sampling.clone(), vec![0, 1, 2, 3])],
        vec![slice(1, 0, &tokens, true)],
    );
    let expected = engine.step(&whole).unwrap().results.remove(0);
    // The second block and the third are those of the other sequence.
    let front = plan(
        vec![start(2, 60, sampling, vec![5, 1, 2, 6])],
        vec![slice(2, 0, &tokens[..16], false)],
    );
    engine.step(&front).unwrap();
    let rest = engine
        .step(&plan(vec![], vec![slice(2, 48, &tokens[48..], true)]))
        .unwrap();
    assert_eq!(rest.results[0].token, expected.token);
    assert_eq!(rest.prompt_tokens, 12);
}
