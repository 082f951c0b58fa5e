//! Sampling that looks back: penalties, bad words, constraints, log-probabilities of the prompt.
#![allow(clippy::unwrap_used)]

mod common;

use common::{VOCAB, engine, next, options, plan, prompt, slice, start};
use kvasir_engine::{
    Constraint, Engine, Grammars, KvDtype, SamplingParams, SequenceStart, SliceOutcome, StepError, WeightType,
};
use std::sync::Arc;

const PROMPT_LENGTH: usize = 37;

fn looking_back() -> SamplingParams {
    SamplingParams {
        temperature: 1.3,
        seed: 11,
        max_tokens: 40,
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        ..SamplingParams::default()
    }
}

fn start_with_prompt(prompt: &[u32], sampling: &SamplingParams) -> SequenceStart {
    SequenceStart {
        prompt_token_ids: prompt.to_vec(),
        ..start(1, prompt.len(), sampling.clone(), (0..8).collect())
    }
}

/// The tokens from the given state on; the last sampled one is in the engine.
fn finish(engine: &mut Engine, mut position: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    loop {
        let result = engine
            .step(&plan(Vec::new(), vec![next(1, position)]))
            .unwrap()
            .results
            .remove(0);
        tokens.push(result.token.unwrap().token_id);
        position += 1;
        if result.outcome == SliceOutcome::Stopped {
            engine.reset();
            return tokens;
        }
    }
}

fn whole(engine: &mut Engine, prompt: &[u32], sampling: &SamplingParams) -> Vec<u32> {
    let begun = plan(
        vec![start_with_prompt(prompt, sampling)],
        vec![slice(1, 0, prompt, true)],
    );
    let first = engine.step(&begun).unwrap().results.remove(0).token.unwrap().token_id;
    let mut tokens = vec![first];
    tokens.extend(finish(engine, prompt.len()));
    tokens
}

#[test]
fn penalties_count_what_a_sequence_brought_along() {
    let mut engine = engine(WeightType::F32, options(16, KvDtype::F32, 1));
    let prompt = prompt(4, PROMPT_LENGTH);
    let sampling = looking_back();
    let expected = whole(&mut engine, &prompt, &sampling);
    // The same blocks still hold the prompt's KV: a decode worker continues on it from the first token, which it is given.
    let begun = plan(
        vec![start_with_prompt(&prompt, &sampling)],
        vec![slice(1, PROMPT_LENGTH, &expected[..1], true)],
    );
    let second = engine.step(&begun).unwrap().results.remove(0).token.unwrap().token_id;
    let mut tokens = vec![expected[0], second];
    tokens.extend(finish(&mut engine, PROMPT_LENGTH + 1));
    assert_eq!(tokens, expected);
    let plain = SamplingParams {
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        ..sampling
    };
    assert_ne!(
        whole(&mut engine, &prompt, &plain),
        expected,
        "the penalties change something"
    );
}

#[test]
fn a_bad_word_is_never_completed() {
    let mut engine = engine(WeightType::F32, options(16, KvDtype::F32, 1));
    let prompt = prompt(4, PROMPT_LENGTH);
    let mut sampling = SamplingParams {
        max_tokens: 40,
        ..SamplingParams::default()
    };
    let free = whole(&mut engine, &prompt, &sampling);
    let word = free[10..12].to_vec();
    sampling.bad_words = vec![word.clone()];
    let tokens = whole(&mut engine, &prompt, &sampling);
    assert_eq!(tokens[..11], free[..11]);
    assert!(!tokens.windows(2).any(|pair| pair == word));
}

#[test]
fn the_prompts_log_probabilities_are_those_of_its_logits_whatever_the_chunks() {
    let mut engine = engine(WeightType::F32, options(16, KvDtype::F32, 2));
    let prompt = prompt(9, PROMPT_LENGTH);
    let logits = engine.logits(&prompt, 512).unwrap();
    let vocab = logits.len() / PROMPT_LENGTH;
    let sampling = SamplingParams {
        prompt_logprobs: Some(2),
        ..SamplingParams::default()
    };
    for chunk in [5, 16, 512] {
        let mut starts = vec![start_with_prompt(&prompt, &sampling)];
        let mut found = Vec::new();
        for (index, tokens) in prompt.chunks(chunk).enumerate() {
            let last = (index + 1) * chunk >= PROMPT_LENGTH;
            let step = plan(std::mem::take(&mut starts), vec![slice(1, index * chunk, tokens, last)]);
            let result = engine.step(&step).unwrap().results.remove(0);
            found.extend(result.token.map(|token| token.prompt_logprobs).unwrap_or_default());
        }
        engine.reset();
        assert_eq!(found.len(), PROMPT_LENGTH - 1, "chunks of {chunk}");
        for (position, entry) in found.iter().enumerate() {
            let row = &logits[position * vocab..(position + 1) * vocab];
            let total: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            let own = row[prompt[position + 1] as usize];
            assert_eq!(entry.token_id, prompt[position + 1]);
            assert!((f64::from(entry.logprob) - (f64::from(own) - total.ln())).abs() < 1e-4);
            assert_eq!(
                entry.rank as usize,
                row.iter().filter(|logit| **logit > own).count() + 1
            );
            assert_eq!(entry.top_logprobs.len(), 2);
            assert!(entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob);
        }
    }
}

#[test]
fn what_needs_the_prompt_is_refused_without_it() {
    let mut engine = engine(WeightType::F32, options(16, KvDtype::F32, 1));
    let prompt = prompt(9, PROMPT_LENGTH);
    let begun = plan(
        vec![start(1, PROMPT_LENGTH, looking_back(), (0..8).collect())],
        vec![slice(1, 0, &prompt, true)],
    );
    let message = engine.step(&begun).unwrap_err().to_string();
    assert!(
        message.contains("prompt_token_ids is 0 tokens; give the prompt's 37 tokens"),
        "{message}"
    );
}

const END: u32 = 0;

/// Token `i` is the character `i` places after a space; the first ends a text.
fn constrained_engine() -> Engine {
    let vocab: serde_json::Map<String, serde_json::Value> = (1..VOCAB as u8)
        .map(|id| (char::from(b' ' + id).to_string(), id.into()))
        .collect();
    let tokenizer = serde_json::json!({
        "added_tokens": [{ "id": END, "content": "<end>", "special": true }],
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab },
    });
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let grammars = Grammars::of_model(directory.path(), VOCAB, &[END]);
    grammars.check(&Constraint::Regex("a".into())).unwrap();
    let mut engine = engine(WeightType::F32, options(16, KvDtype::F32, 2));
    engine.set_grammars(Arc::new(grammars));
    engine
}

fn under(regex: &str) -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        seed: 5,
        max_tokens: 60,
        stop_token_ids: vec![END],
        constraint: Some(Constraint::Regex(regex.into())),
        ..SamplingParams::default()
    }
}

#[test]
fn a_constraint_holds_from_the_first_token_and_where_a_sequence_is_continued() {
    let mut engine = constrained_engine();
    let prompt = prompt(4, PROMPT_LENGTH);
    let sampling = under("(ab|ba|(c[0-9]{1,3}d)){6}!");
    let expected = whole(&mut engine, &prompt, &sampling);
    let (last, body) = expected.split_last().unwrap();
    let text: String = body.iter().map(|id| char::from(b' ' + *id as u8)).collect();
    assert_eq!(*last, END);
    let mut rest = text.strip_suffix('!').unwrap();
    for _ in 0..6 {
        rest = match rest.strip_prefix('c') {
            Some(numbered) => {
                let after = numbered.trim_start_matches(|character: char| character.is_ascii_digit());
                assert!(after.len() < numbered.len(), "{text}");
                after.strip_prefix('d').unwrap()
            }
            None => rest.strip_prefix("ab").or_else(|| rest.strip_prefix("ba")).unwrap(),
        };
    }
    assert_eq!(rest, "");

    let begun = plan(
        vec![start_with_prompt(&prompt, &sampling)],
        vec![slice(1, PROMPT_LENGTH, &expected[..1], true)],
    );
    let second = engine.step(&begun).unwrap().results.remove(0).token.unwrap().token_id;
    let mut tokens = vec![expected[0], second];
    tokens.extend(finish(&mut engine, PROMPT_LENGTH + 1));
    assert_eq!(tokens, expected);
}

#[test]
fn a_constraint_wins_over_what_leaves_it_nothing() {
    let mut engine = constrained_engine();
    let prompt = prompt(4, PROMPT_LENGTH);
    let id = |character: u8| u32::from(character - b' ');
    let mut sampling = under("ab");
    // Neither the word nor the number of tokens can be had.
    sampling.bad_words = vec![vec![id(b'b')]];
    sampling.min_tokens = 20;
    assert_eq!(whole(&mut engine, &prompt, &sampling), [id(b'a'), id(b'b'), END]);
    // Where there is a choice they count.
    sampling.constraint = Some(Constraint::Regex("a*b?".into()));
    assert_eq!(whole(&mut engine, &prompt, &sampling)[..20], [id(b'a'); 20]);
}

#[test]
fn a_constraint_needs_an_end_and_a_tokenizer() {
    let prompt = prompt(4, PROMPT_LENGTH);
    let field_of = |engine: &mut Engine, sampling: &SamplingParams| {
        let start = start_with_prompt(&prompt, sampling);
        match engine.step(&plan(vec![start], vec![slice(1, 0, &prompt, true)])) {
            Err(StepError::InvalidStart { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    let endless = SamplingParams {
        stop_token_ids: Vec::new(),
        ..under("a")
    };
    assert_eq!(field_of(&mut constrained_engine(), &endless), "stop_token_ids");
    assert_eq!(field_of(&mut constrained_engine(), &under("(")), "constraint");
    let mut plain = engine(WeightType::F32, options(16, KvDtype::F32, 1));
    assert_eq!(field_of(&mut plain, &under("a")), "constraint");
    assert_eq!(plain.sequence_count(), 0);
}
