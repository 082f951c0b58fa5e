//! Which token, how often, and with which probability.

use super::*;
use crate::candidates::truncate;

/// Without tokens before.
fn sample(
    isa: Isa,
    logits: &[f32],
    params: &SamplingParams,
    index: u64,
    scratch: &mut SamplingScratch,
) -> SampledToken {
    super::sample(isa, logits, params, Past::default(), index, scratch)
}

fn params(temperature: f32, top_k: u32, top_p: f32) -> SamplingParams {
    SamplingParams {
        temperature,
        top_k,
        top_p,
        seed: 42,
        ..SamplingParams::default()
    }
}

fn draw_many(logits: &[f32], params: &SamplingParams, count: u64) -> Vec<u32> {
    let mut counts = vec![0; logits.len()];
    let mut scratch = SamplingScratch::default();
    for index in 0..count {
        counts[sample(Isa::detect(), logits, params, index, &mut scratch).token_id as usize] += 1;
    }
    counts
}

/// Pearson's statistic of the counts against the probabilities (which sum to 1; zero means never).
fn chi_square(counts: &[u32], probabilities: &[f64]) -> f64 {
    let total: u32 = counts.iter().sum();
    let terms = counts.iter().zip(probabilities).map(|(count, p)| {
        if *p == 0.0 {
            assert_eq!(*count, 0, "a token outside the kept set was drawn");
            return 0.0;
        }
        (f64::from(*count) - p * f64::from(total)).powi(2) / (p * f64::from(total))
    });
    terms.sum()
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let mut scratch = SamplingScratch::default();
    let sampled = sample(
        Isa::detect(),
        &[0.0, 3.0, -1.0, 3.0],
        &params(0.0, 2, 0.5),
        0,
        &mut scratch,
    );
    assert_eq!(
        sampled,
        SampledToken {
            token_id: 1,
            logprob: None,
            top_logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
        }
    );
}

#[test]
fn draws_follow_the_softmax_at_the_temperature() {
    let logits = [1.0, 0.0, 2.0, -1.0, 0.5, 1.5, -0.5, 0.0];
    for temperature in [0.5, 1.0, 2.0] {
        let weights: Vec<f64> = logits
            .iter()
            .map(|x| (f64::from(*x) / f64::from(temperature)).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        let probabilities: Vec<f64> = weights.iter().map(|w| w / total).collect();
        let counts = draw_many(&logits, &params(temperature, 0, 1.0), 20_000);
        // 7 degrees of freedom: 24.3 is passed once in a thousand; the seed is fixed.
        let statistic = chi_square(&counts, &probabilities);
        assert!(statistic < 24.3, "temperature {temperature}: {statistic} {counts:?}");
    }
}

#[test]
fn top_k_keeps_exactly_k_and_ties_go_to_lower_ids() {
    // Ids 1, 2 and 4 share the second rank; of them 1 and 2 make it into the first three.
    let logits = [0.0, 1.0, 1.0, 2.0, 1.0, -3.0];
    let e = std::f64::consts::E;
    let total = e * e + 2.0 * e;
    let probabilities = [0.0, e / total, e / total, e * e / total, 0.0, 0.0];
    let statistic = chi_square(&draw_many(&logits, &params(1.0, 3, 1.0), 10_000), &probabilities);
    assert!(statistic < 13.8, "{statistic}"); // 2 degrees of freedom, one in a thousand.
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_it() {
    // Probabilities 0.5, 0.25, 0.125, 0.125: the nucleus of 0.7 is {0, 1}, that of 0.75 too, that of 0.76 has a third, the lower id.
    let logits = [0.5_f32, 0.125, 0.25, 0.125].map(f32::ln);
    for (top_p, kept) in [
        (0.3, vec![1.0]),
        (0.7, vec![2.0, 0.0, 1.0]),
        (0.7499, vec![2.0, 0.0, 1.0]),
        (0.76, vec![4.0, 1.0, 2.0]),
    ] {
        let mut probabilities: Vec<f64> = kept.clone();
        probabilities.resize(4, 0.0);
        let total: f64 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|p| *p /= total);
        let statistic = chi_square(&draw_many(&logits, &params(1.0, 0, top_p), 10_000), &probabilities);
        assert!(statistic < 13.8, "top_p {top_p}: {statistic}");
    }
}

#[test]
fn top_p_applies_to_what_top_k_left() {
    // Of {0, 1} by top-k the first has 2/3: alone it reaches 0.6 of the two, though only 0.5 of all.
    let logits = [0.5_f32, 0.25, 0.125, 0.125].map(f32::ln);
    assert_eq!(draw_many(&logits, &params(1.0, 2, 0.6), 1_000), [1_000, 0, 0, 0]);
}

#[test]
fn a_wide_nucleus_is_found_behind_the_first_prefix() {
    // 1,000 equal tokens: the nucleus of 0.5 is the 500 lowest ids, far beyond the first sorted prefix.
    let counts = draw_many(&[0.25; 1000], &params(1.0, 0, 0.5), 20_000);
    assert_eq!(counts[500..].iter().sum::<u32>(), 0);
    let probabilities: Vec<f64> = (0..1000).map(|token| if token < 500 { 0.002 } else { 0.0 }).collect();
    let statistic = chi_square(&counts, &probabilities);
    assert!(statistic < 602.0, "{statistic}"); // 499 degrees of freedom: mean 499, deviation 31.6, one in a thousand.
}

#[test]
fn a_token_depends_on_seed_and_index_only() {
    let logits: Vec<f32> = (0..500).map(|i| ((i * 37) % 500) as f32 / 100.0).collect();
    let draw = |seed, index| {
        let params = SamplingParams {
            seed,
            ..params(1.0, 0, 0.9)
        };
        sample(Isa::detect(), &logits, &params, index, &mut SamplingScratch::default()).token_id
    };
    let first: Vec<u32> = (0..50).map(|index| draw(9, index)).collect();
    let backwards: Vec<u32> = (0..50).rev().map(|index| draw(9, index)).rev().collect();
    assert_eq!(first, backwards);
    assert_ne!(first, (0..50).map(|index| draw(10, index)).collect::<Vec<_>>());
}

#[test]
fn log_probabilities_are_of_the_unmodified_distribution() {
    let logits = [0.5_f32, 0.125, 0.25, 0.125].map(|p| p.ln() + 7.0);
    let params = SamplingParams {
        logprobs: true,
        top_logprobs: 3,
        ..params(0.1, 1, 0.2)
    };
    let sampled = sample(Isa::detect(), &logits, &params, 0, &mut SamplingScratch::default());
    let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 2e-6;
    assert_eq!(sampled.token_id, 0);
    assert!(close(sampled.logprob.unwrap(), 0.5_f64.ln()));
    let ids: Vec<u32> = sampled.top_logprobs.iter().map(|top| top.token_id).collect();
    assert_eq!(ids, [0, 2, 1]);
    assert!(close(sampled.top_logprobs[2].logprob, 0.125_f64.ln()));
}

#[test]
fn broken_logits_never_win() {
    let logits = [f32::NAN, 0.0, f32::NEG_INFINITY, 1.0];
    for params in [params(0.0, 0, 1.0), params(0.5, 1, 1.0), params(0.5, 3, 0.5)] {
        assert_eq!(
            sample(Isa::detect(), &logits, &params, 3, &mut SamplingScratch::default()).token_id,
            3
        );
    }
}

/// What transformers' own processors make of the same logits; recorded by `models/oracle/record_sampling.py`.
#[derive(serde::Deserialize)]
struct Recorded {
    name: String,
    prompt: Vec<u32>,
    output: Vec<u32>,
    logits: Vec<f32>,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    typical_p: f32,
    repetition_penalty: f32,
    min_tokens: u32,
    stop_token_ids: Vec<u32>,
    bad_words: Vec<Vec<u32>>,
    logit_bias: Vec<(u32, f32)>,
    /// Probabilities after everything; 0 for what was dropped.
    probabilities: Vec<f64>,
}

#[test]
fn every_processor_does_what_transformers_own_does() {
    let cases: Vec<Recorded> = serde_json::from_str(include_str!("fixtures/transformers.json")).unwrap();
    assert!(cases.len() >= 40);
    for case in cases {
        let params = SamplingParams {
            temperature: case.temperature,
            top_k: case.top_k,
            top_p: case.top_p,
            min_p: case.min_p,
            typical_p: case.typical_p,
            repetition_penalty: case.repetition_penalty,
            min_tokens: case.min_tokens,
            stop_token_ids: case.stop_token_ids,
            bad_words: case.bad_words,
            logit_bias: case.logit_bias,
            ..SamplingParams::default()
        };
        let mut history = History::new(&case.prompt, case.prompt.len());
        for (index, token) in case.output.iter().enumerate() {
            history.push(case.prompt.len() + index, *token);
        }
        let ours = probabilities(&case.logits, &params, &history, case.output.len() as u64);
        for (token, (ours, theirs)) in ours.iter().zip(&case.probabilities).enumerate() {
            assert!(
                (ours - theirs).abs() < 1e-5 && (*ours < 1e-8) == (*theirs < 1e-8),
                "{}: token {token} has {ours}, transformers {theirs}",
                case.name
            );
        }
    }
}

/// The distribution that a draw is from.
fn probabilities(logits: &[f32], params: &SamplingParams, history: &History, index: u64) -> Vec<f64> {
    let mut adjusted = logits.to_vec();
    adjust(&mut adjusted, params, history, index);
    let (mut weights, mut keys, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let (_, largest) = argmax(Isa::detect(), &adjusted);
    let total = exp_weights(
        Isa::detect(),
        &mut weights,
        &adjusted,
        largest,
        1.0 / params.temperature,
    );
    for (weight, logit) in weights.iter_mut().zip(&adjusted) {
        if *logit == f32::NEG_INFINITY {
            *weight = 0.0;
        }
    }
    truncate(&adjusted, &weights, total, params, &mut keys, &mut kept);
    let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for (token, weight) in kept {
        probabilities[token as usize] = f64::from(weight) / total;
    }
    probabilities
}

#[test]
fn presence_and_frequency_look_at_the_output_only() {
    let mut history = History::new(&[0, 1], 2);
    for (index, token) in [1, 2, 2].into_iter().enumerate() {
        history.push(2 + index, token);
    }
    let params = SamplingParams {
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        ..SamplingParams::default()
    };
    let mut logits = [1.0, 1.0, 1.0, 1.0];
    adjust(&mut logits, &params, &history, 3);
    assert_eq!(logits, [1.0, 0.25, 0.0, 1.0]);
}

#[test]
fn what_is_forbidden_is_never_drawn_even_where_little_is_left() {
    let params = SamplingParams {
        temperature: 2.0,
        logit_bias: vec![(1, -100.0)],
        bad_words: vec![vec![0], vec![2]],
        seed: 3,
        ..SamplingParams::default()
    };
    let mut scratch = SamplingScratch::default();
    for index in 0..200 {
        assert_eq!(
            sample(Isa::detect(), &[5.0, 0.0, 9.0], &params, index, &mut scratch).token_id,
            1
        );
    }
    let all = SamplingParams {
        bad_words: vec![vec![0], vec![1], vec![2]],
        ..params
    };
    assert_eq!(
        sample(Isa::detect(), &[5.0, 0.0, 9.0], &all, 0, &mut scratch).token_id,
        0
    );
}

#[test]
fn log_probabilities_are_of_the_model_whatever_is_done_to_its_logits() {
    let logits = [0.5, 2.0, -1.0, 0.0];
    let plain = SamplingParams {
        logprobs: true,
        top_logprobs: 4,
        ..SamplingParams::default()
    };
    let changed = SamplingParams {
        logit_bias: vec![(2, 50.0)],
        temperature: 0.7,
        min_p: 0.3,
        ..plain.clone()
    };
    let mut scratch = SamplingScratch::default();
    let before = sample(Isa::detect(), &logits, &plain, 0, &mut scratch);
    let after = sample(Isa::detect(), &logits, &changed, 0, &mut scratch);
    assert_eq!((after.token_id, &after.top_logprobs), (2, &before.top_logprobs));
    assert_eq!(after.logprob, Some(before.top_logprobs[3].logprob));
}

#[test]
fn a_dead_mask_ends_in_a_token_that_is_no_stop_token() {
    let params = SamplingParams {
        stop_token_ids: vec![2],
        ..SamplingParams::default()
    };
    let choose = |mask: &Mask| {
        let past = Past {
            mask: Some(mask),
            ..Past::default()
        };
        let scratch = &mut SamplingScratch::default();
        super::sample(Isa::detect(), &[5.0, 0.0, 9.0], &params, past, 0, scratch).token_id
    };
    assert_eq!(choose(&Mask::default()), 0);
    assert_eq!(choose(&Mask::new(vec![0b10], false)), 1);
    assert_eq!(choose(&Mask::new(vec![0b10], true)), 2);
}
