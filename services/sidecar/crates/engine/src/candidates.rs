//! Which tokens a draw is among: truncation of the distribution. Pure.

use crate::plan::{SamplingParams, is_one};

/// A token and its weight, a positive number that its probability is proportional to.
pub type Candidate = (u32, f32);

/// Keeps, in transformers' order: the `top_k` most likely tokens; of those the smallest set of most likely ones whose share reaches `top_p`
/// (Holtzman et al., ICLR 2020); of those the ones at least `min_p` times as likely as the most likely (Nguyen et al., ICLR 2025); of those
/// the ones whose surprise is nearest the entropy, up to a share of `typical_p` (Meister et al., TACL 2023). Each share is of what is left.
/// Ties rank by id. `weights` are relative to the largest logit's, which has 1; `total` is their sum. `keys` is scratch memory.
pub fn truncate(
    logits: &[f32],
    weights: &[f32],
    total: f64,
    params: &SamplingParams,
    keys: &mut Vec<u64>,
    kept: &mut Vec<Candidate>,
) {
    kept.clear();
    let vocab = weights.len();
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
        kept.extend((0..).zip(weights.iter().copied()));
    } else {
        rank_all(logits, keys);
        let ranked = most_likely(weights, total, top_k, top_p, keys);
        kept.extend(ranked.iter().map(|key| (*key as u32, weights[*key as u32 as usize])));
    }
    if params.min_p > 0.0 {
        kept.retain(|(_, weight)| *weight >= params.min_p);
    }
    if !is_one(params.typical_p) {
        keep_typical(kept, f64::from(params.typical_p));
    }
}

/// Whether [`truncate`] would keep every token.
pub fn keeps_all(params: &SamplingParams, vocab: usize) -> bool {
    let all_k = params.top_k == 0 || params.top_k as usize >= vocab;
    all_k && is_one(params.top_p) && params.min_p == 0.0 && is_one(params.typical_p)
}

fn most_likely<'k>(weights: &[f32], total: f64, top_k: usize, top_p: f64, keys: &'k mut [u64]) -> &'k [u64] {
    let vocab = weights.len();
    let weight_of = |key: &u64| f64::from(weights[*key as u32 as usize]);
    if top_k < vocab {
        let kept = sorted_prefix(keys, top_k);
        let total = kept.iter().map(weight_of).sum::<f64>();
        let count = nucleus(kept.iter().map(weight_of), top_p * total).unwrap_or(kept.len());
        return &keys[..count];
    }
    // The nucleus is mostly small: sort ever longer prefixes until one holds it.
    let mut length = 64.min(vocab);
    loop {
        let sorted = sorted_prefix(keys, length);
        if let Some(count) = nucleus(sorted.iter().map(weight_of), top_p * total) {
            return &keys[..count];
        }
        if length == vocab {
            return keys;
        }
        length = (length * 8).min(vocab);
    }
}

/// Length of the shortest prefix whose weights reach `goal`.
fn nucleus(weights: impl Iterator<Item = f64>, goal: f64) -> Option<usize> {
    let mut sum = 0.0;
    weights.enumerate().find_map(|(index, weight)| {
        sum += weight;
        (sum >= goal).then_some(index + 1)
    })
}

fn keep_typical(kept: &mut Vec<Candidate>, mass: f64) {
    let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let surprise = |weight: f32| total.ln() - f64::from(weight).ln();
    let entropy: f64 = kept
        .iter()
        .filter(|(_, weight)| *weight > 0.0)
        .map(|(_, weight)| f64::from(*weight) / total * surprise(*weight))
        .sum();
    let distance = |(_, weight): &Candidate| (surprise(*weight) - entropy).abs();
    kept.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.0.cmp(&b.0)));
    let mut sum = 0.0;
    let below = kept
        .iter()
        .take_while(|(_, weight)| {
            sum += f64::from(*weight) / total;
            sum < mass
        })
        .count();
    if let Some(last) = kept.get(below).map(distance) {
        kept.retain(|candidate| distance(candidate) <= last);
    }
}

/// The first token at which the running sum passes `target`; the last one if rounding leaves none.
pub fn pick(candidates: impl Iterator<Item = Candidate>, target: f64) -> u32 {
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
pub fn rank_all(logits: &[f32], keys: &mut Vec<u64>) {
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
pub fn sorted_prefix(keys: &mut [u64], count: usize) -> &[u64] {
    if count < keys.len() {
        keys.select_nth_unstable(count);
    }
    keys[..count].sort_unstable();
    &keys[..count]
}
