//! From logits to a token. Pure: the random number comes from (seed, token index).

use crate::adjust::{adjust, adjusts};
use crate::candidates::{Candidate, keeps_all, pick, rank_all, sorted_prefix, truncate};
use crate::history::History;
use crate::plan::{PromptLogprob, SampledToken, SamplingParams, TokenLogprob};
use crate::random::uniform;
use kvasir_grammar::Mask;
use kvasir_kernels::{Isa, argmax, exp_weights};

/// Buffers that outlive one call; their content does not.
#[derive(Default)]
pub struct SamplingScratch {
    adjusted: Vec<f32>,
    weights: Vec<f32>,
    keys: Vec<u64>,
    kept: Vec<Candidate>,
}

/// What earlier tokens say about the next one.
#[derive(Clone, Copy, Default)]
pub struct Past<'a> {
    /// For penalties and bad words.
    pub history: Option<&'a History>,
    /// Whose history: a number that no other sequence had before. A device that remembers tokens knows them by it.
    pub sequence: u64,
    /// For constraints.
    pub mask: Option<&'a Mask>,
}

/// Chooses token `index` of a request from its logits.
///
/// First [`adjust`] changes the logits, then the mask forbids what its constraint does not allow; where both leave nothing, the constraint
/// alone counts. Temperature 0 then takes the largest, the lowest id among equals. Otherwise: softmax at the
/// temperature, [`truncate`], one draw from what is left. Log-probabilities are of the unmodified distribution, as vLLM's `raw_logprobs`.
/// Logits that are NaN count as least likely.
pub fn sample(
    isa: Isa,
    logits: &[f32],
    params: &SamplingParams,
    past: Past<'_>,
    index: u64,
    scratch: &mut SamplingScratch,
) -> SampledToken {
    let token = if adjusts(params, index) || past.mask.is_some() {
        let mut adjusted = std::mem::take(&mut scratch.adjusted);
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        adjust(
            &mut adjusted,
            params,
            past.history.unwrap_or(&History::default()),
            index,
        );
        if let Some(mask) = past.mask {
            restrict(&mut adjusted, logits, mask, &params.stop_token_ids);
        }
        let token = choose(isa, &adjusted, params, index, scratch);
        scratch.adjusted = adjusted;
        token
    } else {
        choose(isa, logits, params, index, scratch)
    };
    let mut sampled = SampledToken {
        token_id: token,
        logprob: None,
        top_logprobs: Vec::new(),
        prompt_logprobs: Vec::new(),
    };
    if params.logprobs {
        let (logprob, top) = logprobs(isa, logits, token, params.top_logprobs, scratch);
        sampled.logprob = Some(logprob);
        sampled.top_logprobs = top;
    }
    sampled
}

/// Forbids what a mask does not allow. A dead one ends the sequence, by a token that is no stop token: the text is cut, not complete.
fn restrict(adjusted: &mut [f32], logits: &[f32], mask: &Mask, stop_token_ids: &[u32]) {
    if mask.is_dead() {
        for token in stop_token_ids {
            if let Some(logit) = adjusted.get_mut(*token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        return;
    }
    mask.apply(adjusted, stop_token_ids);
    if adjusted.iter().all(|logit| *logit == f32::NEG_INFINITY) {
        adjusted.copy_from_slice(logits);
        mask.apply(adjusted, stop_token_ids);
    }
}

/// How likely the model held a token of the prompt, with the `count` most likely ones.
pub fn prompt_logprob(
    isa: Isa,
    logits: &[f32],
    token_id: u32,
    count: u32,
    scratch: &mut SamplingScratch,
) -> PromptLogprob {
    let (logprob, top_logprobs) = logprobs(isa, logits, token_id, count, scratch);
    let own = logits.get(token_id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let above = logits.iter().filter(|logit| **logit > own).count();
    PromptLogprob {
        token_id,
        logprob,
        rank: above as u32 + 1,
        top_logprobs,
    }
}

fn choose(isa: Isa, logits: &[f32], params: &SamplingParams, index: u64, scratch: &mut SamplingScratch) -> u32 {
    let (best, largest) = argmax(isa, logits);
    if params.temperature == 0.0 || largest == f32::NEG_INFINITY {
        return best as u32;
    }
    let SamplingScratch {
        weights, keys, kept, ..
    } = scratch;
    let total = exp_weights(isa, weights, logits, largest, 1.0 / params.temperature);
    for (weight, logit) in weights.iter_mut().zip(logits) {
        // Exponentials end above zero; what was forbidden has none.
        if *logit == f32::NEG_INFINITY {
            *weight = 0.0;
        }
    }
    let random = uniform(params.seed, index);
    if keeps_all(params, logits.len()) {
        return pick((0..).zip(weights.iter().copied()), random * total);
    }
    truncate(logits, weights, total, params, keys, kept);
    let kept_total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
    pick(kept.iter().copied(), random * kept_total)
}

/// `ln p` of a token and of the `count` most likely ones, most likely first, ties by lower id.
fn logprobs(
    isa: Isa,
    logits: &[f32],
    token: u32,
    count: u32,
    scratch: &mut SamplingScratch,
) -> (f32, Vec<TokenLogprob>) {
    let (_, largest) = argmax(isa, logits);
    let total = exp_weights(isa, &mut scratch.weights, logits, largest, 1.0);
    let logprob = |token: u32| {
        let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        (f64::from(logit) - f64::from(largest) - total.ln()) as f32
    };
    let count = (count as usize).min(logits.len());
    if count == 0 {
        return (logprob(token), Vec::new());
    }
    rank_all(logits, &mut scratch.keys);
    let ranked = sorted_prefix(&mut scratch.keys, count);
    let top = ranked.iter().map(|key| TokenLogprob {
        token_id: *key as u32,
        logprob: logprob(*key as u32),
    });
    (logprob(token), top.collect())
}

#[cfg(test)]
mod tests;
