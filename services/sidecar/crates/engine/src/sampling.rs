//! From logits to a token. Pure: the random number comes from (seed, token index).

use crate::plan::{SampledToken, SamplingParams, TokenLogprob};
use crate::random::uniform;
use kvasir_kernels::{Isa, argmax, exp_weights};

/// Buffers that outlive one call; their content does not.
#[derive(Default)]
pub struct SamplingScratch {
    weights: Vec<f32>,
    keys: Vec<u64>,
}

/// Chooses token `index` of a request from its logits.
///
/// Temperature 0 takes the largest logit, the lowest id among equals. Otherwise: softmax at the temperature, the `top_k` most likely, of
/// those the smallest set of most likely ones whose share reaches `top_p` (Holtzman et al., ICLR 2020), then one draw from what is left.
/// Ties rank by id. Log-probabilities are of the unmodified distribution. Logits that are NaN count as least likely.
pub fn sample(
    isa: Isa,
    logits: &[f32],
    params: &SamplingParams,
    index: u64,
    scratch: &mut SamplingScratch,
) -> SampledToken {
    let (best, largest) = argmax(isa, logits);
    let token = if params.temperature > 0.0 {
        draw(isa, logits, largest, params, uniform(params.seed, index), scratch)
    } else {
        best
    };
    let mut sampled = SampledToken {
        token_id: token as u32,
        logprob: None,
        top_logprobs: Vec::new(),
    };
    if params.logprobs {
        let total = exp_weights(isa, &mut scratch.weights, logits, largest, 1.0);
        let logprob = |token: usize| (f64::from(logits[token]) - f64::from(largest) - total.ln()) as f32;
        sampled.logprob = Some(logprob(token));
        let count = (params.top_logprobs as usize).min(logits.len());
        rank_all(logits, &mut scratch.keys);
        let ranked = sorted_prefix(&mut scratch.keys, count);
        sampled.top_logprobs = ranked
            .iter()
            .map(|key| TokenLogprob {
                token_id: *key as u32,
                logprob: logprob(*key as u32 as usize),
            })
            .collect();
    }
    sampled
}

fn draw(
    isa: Isa,
    logits: &[f32],
    largest: f32,
    params: &SamplingParams,
    random: f64,
    scratch: &mut SamplingScratch,
) -> usize {
    let vocab = logits.len();
    let total = exp_weights(isa, &mut scratch.weights, logits, largest, 1.0 / params.temperature);
    let weights = &scratch.weights;
    let top_k = if params.top_k == 0 {
        vocab
    } else {
        (params.top_k as usize).min(vocab)
    };
    let top_p = if params.top_p > 0.0 {
        f64::from(params.top_p)
    } else {
        1.0
    };
    if top_k == vocab && top_p >= 1.0 {
        return pick((0..vocab).map(|token| (token, weights[token])), random * total);
    }
    rank_all(logits, &mut scratch.keys);
    let weight_of = |key: &u64| f64::from(weights[*key as u32 as usize]);
    let kept = if top_k < vocab {
        let kept = sorted_prefix(&mut scratch.keys, top_k);
        let total = kept.iter().map(weight_of).sum::<f64>();
        let count = nucleus(kept.iter().map(weight_of), top_p * total).unwrap_or(kept.len());
        &kept[..count]
    } else {
        // The nucleus is mostly small: sort ever longer prefixes until one holds it.
        let mut length = 64.min(vocab);
        loop {
            let sorted = sorted_prefix(&mut scratch.keys, length);
            if let Some(count) = nucleus(sorted.iter().map(weight_of), top_p * total) {
                break &scratch.keys[..count];
            }
            if length == vocab {
                break &scratch.keys[..];
            }
            length = (length * 8).min(vocab);
        }
    };
    let kept_total = kept.iter().map(weight_of).sum::<f64>();
    pick(
        kept.iter()
            .map(|key| (*key as u32 as usize, weights[*key as u32 as usize])),
        random * kept_total,
    )
}

/// Length of the shortest prefix whose weights reach `goal`.
fn nucleus(weights: impl Iterator<Item = f64>, goal: f64) -> Option<usize> {
    let mut sum = 0.0;
    weights.enumerate().find_map(|(index, weight)| {
        sum += weight;
        (sum >= goal).then_some(index + 1)
    })
}

/// The first token at which the running sum passes `target`; the last one if rounding leaves none.
fn pick(candidates: impl Iterator<Item = (usize, f32)>, target: f64) -> usize {
    let (mut sum, mut last) = (0.0, 0);
    for (token, weight) in candidates {
        sum += f64::from(weight);
        last = token;
        if sum > target {
            break;
        }
    }
    last
}

/// One key for each token; ascending keys are descending logits, then ascending ids. The id is the low half.
fn rank_all(logits: &[f32], keys: &mut Vec<u64>) {
    keys.clear();
    keys.extend(logits.iter().enumerate().map(|(token, logit)| {
        let bits = if logit.is_nan() {
            f32::NEG_INFINITY.to_bits()
        } else {
            (logit + 0.0).to_bits()
        };
        // Flips so that unsigned order is descending numerical order; adding 0 made -0 equal to 0.
        let descending = if bits >> 31 == 0 { !bits & 0x7fff_ffff } else { bits };
        u64::from(descending) << 32 | token as u64
    }));
}

/// Moves the `count` smallest keys to the front, in order.
fn sorted_prefix(keys: &mut [u64], count: usize) -> &[u64] {
    if count < keys.len() {
        keys.select_nth_unstable(count);
    }
    keys[..count].sort_unstable();
    &keys[..count]
}

#[cfg(test)]
mod tests;
