//! Changes to logits before a token is chosen.

use crate::history::History;
use crate::plan::{SamplingParams, is_one};
use std::collections::{BTreeMap, BTreeSet};

/// Whether [`adjust`] would change anything.
pub fn adjusts(params: &SamplingParams, index: u64) -> bool {
    params.needs_penalties()
        || !params.logit_bias.is_empty()
        || !params.bad_words.is_empty()
        || holds_back_stops(params, index)
}

/// Changes the logits of token `index` in vLLM's order: bias; then repetition (Keskar et al., arXiv:1909.05858, on prompt and output),
/// frequency and presence penalty (on the output); then what must not be sampled (bad words, stop tokens before `min_tokens`) to minus
/// infinity. Ids beyond the vocabulary are left out.
pub fn adjust(logits: &mut [f32], params: &SamplingParams, history: &History, index: u64) {
    for (token, bias) in &params.logit_bias {
        change(logits, *token, |logit| logit + bias);
    }
    if params.needs_penalties() {
        let repetition = if is_one(params.repetition_penalty) {
            1.0
        } else {
            params.repetition_penalty
        };
        for (token, count) in history.seen() {
            change(logits, token, |logit| {
                let logit = if logit > 0.0 {
                    logit / repetition
                } else {
                    logit * repetition
                };
                let presence = if count > 0 { params.presence_penalty } else { 0.0 };
                logit - params.frequency_penalty * count as f32 - presence
            });
        }
    }
    for word in &params.bad_words {
        if let Some((last, before)) = word.split_last()
            && history.ends_with(before)
        {
            change(logits, *last, |_| f32::NEG_INFINITY);
        }
    }
    if holds_back_stops(params, index) {
        for token in &params.stop_token_ids {
            change(logits, *token, |_| f32::NEG_INFINITY);
        }
    }
}

/// What [`adjust`] does to logits beside penalties, as data, for devices that do it themselves. Ids beyond the vocabulary are left out; tokens
/// ascend.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogitChanges {
    /// Added before penalties.
    pub biases: BTreeMap<u32, f32>,
    /// Not sampled, whatever penalties made of them.
    pub forbidden: BTreeSet<u32>,
}

/// The changes for token `index`.
pub fn logit_changes(params: &SamplingParams, history: &History, index: u64, vocab: usize) -> LogitChanges {
    let mut changes = LogitChanges::default();
    for (token, bias) in params.logit_bias.iter().filter(|(token, _)| (*token as usize) < vocab) {
        *changes.biases.entry(*token).or_default() += bias;
    }
    let words = params.bad_words.iter().filter_map(|word| word.split_last());
    let completed = words
        .filter(|(_, before)| history.ends_with(before))
        .map(|(last, _)| *last);
    changes.forbidden.extend(completed);
    if holds_back_stops(params, index) {
        changes.forbidden.extend(&params.stop_token_ids);
    }
    changes.forbidden.retain(|token| (*token as usize) < vocab);
    changes
}

fn change(logits: &mut [f32], token: u32, to: impl Fn(f32) -> f32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = to(*logit);
    }
}

fn holds_back_stops(params: &SamplingParams, index: u64) -> bool {
    index < u64::from(params.min_tokens) && !params.stop_token_ids.is_empty()
}
