//! Tokens chosen on the device, beside the CPU's over the same logits; steps that overlap, beside steps one after another.

use crate::tiny::{VOCAB, backend, engine_with, families, prompt};
use kvasir_cuda::Division;
use kvasir_engine::{
    Backend, Engine, History, Mask, Past, Read, Reading, SampledToken, SamplingParams, SequenceStart, Slice,
    SliceOutcome, StepOutput, StepPlan, TokenSource, read_logits,
};
use kvasir_kernels::{AlignedF32, Cpu, Span};
use kvasir_simt::suite::Random;
use std::ops::Range;

const ROWS: usize = 12;

fn params(random: &mut Random) -> SamplingParams {
    let mut token = || random.range(0, VOCAB) as u32;
    let (stops, bad) = ([token(), token()], token());
    let words = [Vec::new(), vec![vec![bad]]];
    SamplingParams {
        temperature: random.pick(&[0.0, 0.7, 1.0, 1.6]),
        top_k: random.pick(&[0, 0, 5, 40]),
        top_p: random.pick(&[1.0, 0.0, 0.9, 0.4]),
        min_p: random.pick(&[0.0, 0.0, 0.05]),
        typical_p: random.pick(&[1.0, 0.0, 0.0, 0.6]),
        seed: random.bits(),
        stop_token_ids: stops.to_vec(),
        min_tokens: random.pick(&[0, 0, 50]),
        logprobs: random.pick(&[true, false]),
        top_logprobs: random.pick(&[0, 3, 20]),
        repetition_penalty: random.pick(&[1.0, 0.0, 1.3]),
        presence_penalty: random.pick(&[0.0, 0.0, 0.5]),
        frequency_penalty: random.pick(&[0.0, 0.0, -0.2]),
        logit_bias: random.pick(&[&[][..], &[(3, 2.5), (70, -1.5)]]).to_vec(),
        bad_words: words[random.range(0, 2)].clone(),
        ..SamplingParams::default()
    }
}

fn close(a: f32, b: f32) -> bool {
    a == b || (a - b).abs() < 1e-5
}

#[track_caller]
fn agree(found: &Read, expected: &Read, about: &str) {
    match (found, expected) {
        (Read::Token(a), Read::Token(b)) => {
            assert_eq!(a.token_id, b.token_id, "{about}");
            assert_eq!(a.logprob.is_some(), b.logprob.is_some());
            assert!(close(a.logprob.unwrap_or(0.0), b.logprob.unwrap_or(0.0)), "{about}");
            tops_agree(&a.top_logprobs, &b.top_logprobs);
        }
        (Read::Prompt(a), Read::Prompt(b)) => {
            assert_eq!((a.token_id, a.rank), (b.token_id, b.rank));
            assert!(close(a.logprob, b.logprob));
            tops_agree(&a.top_logprobs, &b.top_logprobs);
        }
        (Read::Nothing, Read::Nothing) => {}
        other => panic!("{about}: {other:?}"),
    }
}

#[track_caller]
fn tops_agree(a: &[kvasir_engine::TokenLogprob], b: &[kvasir_engine::TokenLogprob]) {
    let ids = |tops: &[kvasir_engine::TokenLogprob]| tops.iter().map(|top| top.token_id).collect::<Vec<_>>();
    assert_eq!(ids(a), ids(b));
    assert!(a.iter().zip(b).all(|(a, b)| close(a.logprob, b.logprob)));
}

#[test]
fn the_device_reads_logits_as_the_cpu_does() {
    let config = &families()[1];
    let tokens = prompt(ROWS, 3);
    let blocks = [0];
    let span = || Span {
        start_position: 0,
        token_count: ROWS,
        blocks: &blocks,
    };
    let rows: Vec<usize> = (0..ROWS).collect();
    let mut device = backend(config, Division::FAST, true, 1);
    let mut logits = AlignedF32::default();
    device
        .forward(&tokens, vec![span()], &rows, &mut logits, &mut |_| {})
        .unwrap();
    let cpu = Cpu::new(1).unwrap();
    let sources: Vec<TokenSource> = tokens.iter().map(|token| TokenSource::Known(*token)).collect();
    let mut histories = vec![History::default(); ROWS];
    let mut numbers = [0; ROWS];
    for seed in 0..6 {
        let random = &mut Random::new(seed);
        let all: Vec<SamplingParams> = (0..ROWS).map(|_| params(random)).collect();
        for (i, history) in histories.iter_mut().enumerate() {
            if seed == 0 || random.range(0, 2) == 0 {
                *history = History::new(&prompt(20, random.bits()), 20);
                numbers[i] = seed * ROWS as u64 + i as u64;
            }
            let length = history.output_len();
            (length..length + 15).for_each(|i| history.push(20 + i, random.range(0, 12) as u32));
        }
        let masks: Vec<Option<Mask>> = (0..ROWS)
            .map(|_| {
                let bits = |random: &mut Random| (0..3).map(|_| (random.bits() & random.bits()) as u32).collect();
                match random.range(0, 6) {
                    0 => Some(Mask::new(bits(random), true)),
                    1 => Some(Mask::new(bits(random), false)),
                    2 => Some(Mask::new(Vec::new(), false)),
                    3 => Some(Mask::new(Vec::new(), true)),
                    _ => None,
                }
            })
            .collect();
        let readings: Vec<Reading<'_>> = (0..ROWS)
            .map(|i| match random.range(0, 8) {
                0 => Reading::Nothing,
                1 => Reading::Prompt {
                    token: random.range(0, VOCAB) as u32,
                    top: random.range(0, 20) as u32,
                },
                _ => Reading::Sample {
                    params: &all[i],
                    past: Past {
                        history: Some(&histories[i]),
                        // Half of the sequences were there before, and have had a few more tokens since.
                        sequence: numbers[i],
                        mask: masks[i].as_ref(),
                    },
                    index: 15,
                },
            })
            .collect();
        device.launch(&sources, vec![span()], &rows, &mut |_| {}).unwrap();
        device.read(&readings).unwrap();
        let found = device.collect(&mut |layers| assert_eq!(layers, 2)).unwrap();
        let expected = read_logits(&cpu, &logits, VOCAB, &readings);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            agree(
                found,
                expected,
                &format!("seed {seed}, row {i}: {:?}, {:?}", all[i], masks[i]),
            );
        }
    }
}

/// Sequence `i` has a prompt of its own length, and generates until its limit or its stop token.
struct Running {
    position: u32,
    prompt: Vec<u32>,
    tokens: Vec<SampledToken>,
    begun: u32,
    outcomes: Vec<SliceOutcome>,
}

const NEW_TOKENS: u32 = 9;

/// Five sequences, or those of them that are chosen. Plans as a worker does: one step ahead of the answers, so that a sequence that ends has a
/// slice in flight.
fn generate(mut engine: Engine, is_ahead: bool, chosen: Range<usize>) -> Vec<Running> {
    let random = &mut Random::new(9);
    let mut all: Vec<Running> = (0..5)
        .map(|i| Running {
            position: 0,
            prompt: prompt(5 + 7 * i, i as u64),
            tokens: Vec::new(),
            begun: 0,
            outcomes: Vec::new(),
        })
        .collect();
    let mut starts: Vec<SequenceStart> = (0..all.len())
        .map(|i| SequenceStart {
            sequence_id: i as u64,
            prompt_token_count: all[i].prompt.len() as u32,
            sampling: SamplingParams {
                max_tokens: NEW_TOKENS - i as u32,
                logprobs: true,
                // One in three tokens ends the third sequence, mostly before its limit.
                stop_token_ids: if i == 2 {
                    (0..VOCAB as u32).step_by(3).collect()
                } else {
                    Vec::new()
                },
                temperature: 1.0,
                ..params(random)
            },
            block_ids: (4 * i as u32..4 * i as u32 + 4).collect(),
            prompt_token_ids: all[i].prompt.clone(),
        })
        .collect();
    starts.retain(|start| chosen.contains(&(start.sequence_id as usize)));
    let take = |all: &mut Vec<Running>, output: StepOutput| {
        for result in output.results {
            let running = &mut all[result.sequence_id as usize];
            running.outcomes.push(result.outcome);
            running.tokens.extend(result.token);
        }
    };
    for step in 0..NEW_TOKENS + 2 {
        let mut plan = StepPlan {
            starts: std::mem::take(&mut starts),
            ..StepPlan::default()
        };
        for (i, running) in all.iter_mut().enumerate() {
            let length = running.prompt.len() as u32;
            // Each joins a step later than the one before it, and gets a slice more than it can use.
            if !chosen.contains(&i) || step < i as u32 || running.begun > NEW_TOKENS - i as u32 {
                continue;
            }
            let is_first = running.begun == 0;
            plan.slices.push(Slice {
                sequence_id: i as u64,
                start_position: running.position,
                token_count: if is_first { length } else { 1 },
                token_ids: if is_first { running.prompt.clone() } else { Vec::new() },
                sample: true,
                ..Slice::default()
            });
            running.position += if is_first { length } else { 1 };
            running.begun += 1;
        }
        assert!(engine.can_begin(&plan));
        engine.begin(&plan, &mut |_, _| {}).unwrap();
        while engine.in_flight() > usize::from(is_ahead) {
            let output = engine.finish(&mut |_, _| {}).unwrap();
            take(&mut all, output);
        }
    }
    while engine.in_flight() > 0 {
        let output = engine.finish(&mut |_, _| {}).unwrap();
        take(&mut all, output);
    }
    all
}

#[test]
fn steps_that_overlap_and_graphs_change_no_token() {
    let config = &families()[0];
    for division in [Division::FAST, Division::DETERMINISTIC] {
        let of = |ahead, graphs| generate(engine_with(config, Some(division), graphs), ahead, 0..5);
        let one_by_one = of(false, false);
        for (i, (a, b)) in one_by_one.iter().zip(&of(true, true)).enumerate() {
            assert_eq!(a.tokens, b.tokens, "sequence {i}");
            assert_eq!(a.outcomes, b.outcomes, "sequence {i}");
            assert!(a.outcomes.ends_with(&[SliceOutcome::Skipped]), "{:?}", a.outcomes);
        }
        assert!(one_by_one[2].tokens.len() < 7, "no stop token came");
    }
}

#[test]
fn a_deterministic_device_says_the_same_tokens_whatever_the_batch() {
    let config = &families()[2];
    let of = |chosen| generate(engine_with(config, Some(Division::DETERMINISTIC), true), true, chosen);
    let together = of(0..5);
    for i in [1, 4] {
        let alone = of(i..i + 1);
        assert!(alone[i].tokens.len() > 3, "{:?}", alone[i].tokens);
        // Log-probabilities too, to the last bit.
        assert_eq!(alone[i].tokens, together[i].tokens, "sequence {i}");
    }
}
