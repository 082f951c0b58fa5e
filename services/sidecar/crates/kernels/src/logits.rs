//! What sampling needs of a row of logits.

use crate::isa::{Isa, Kernel};
use crate::math::exp;
use crate::simd::{LANES, Simd};

/// The largest logit and the lowest index that has it; NaN counts as smaller than everything. `(0, -inf)` when there is none.
pub fn argmax(isa: Isa, logits: &[f32]) -> (usize, f32) {
    let largest = isa.run(Largest(logits));
    (logits.iter().position(|logit| *logit == largest).unwrap_or(0), largest)
}

/// `out[i] = e^((logits[i] - largest) · inverse_temperature)`, each at least `e^-87`; returns their sum, in f64 and one fixed order.
/// `out` is resized to the logits' length.
pub fn exp_weights(isa: Isa, out: &mut Vec<f32>, logits: &[f32], largest: f32, inverse_temperature: f32) -> f64 {
    out.resize(logits.len(), 0.0);
    isa.run(ExpWeights {
        out,
        logits,
        largest,
        inverse_temperature,
    })
}

struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (chunks, tail) = self.0.as_chunks::<LANES>();
        let mut largest = s.splat(f32::NEG_INFINITY);
        for chunk in chunks {
            largest = s.max(s.load(chunk), largest); // In this order NaN leaves `largest` as it is.
        }
        let mut largest = s.reduce_max(largest);
        for logit in tail {
            if *logit > largest {
                largest = *logit;
            }
        }
        largest
    }
}

struct ExpWeights<'a> {
    out: &'a mut [f32],
    logits: &'a [f32],
    largest: f32,
    inverse_temperature: f32,
}

impl Kernel for ExpWeights<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let (largest, factor) = (s.splat(self.largest), s.splat(self.inverse_temperature));
        let mut sums = [0.0_f64; LANES];
        for (logits, out) in self.logits.chunks(LANES).zip(self.out.chunks_mut(LANES)) {
            let mut full = [f32::NEG_INFINITY; LANES];
            full[..logits.len()].copy_from_slice(logits);
            let weights = exp(s, s.mul(s.sub(s.load(&full), largest), factor));
            s.store(weights, &mut full);
            out.copy_from_slice(&full[..out.len()]);
            for (sum, weight) in sums.iter_mut().zip(&full[..out.len()]) {
                *sum += f64::from(*weight);
            }
        }
        sums.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_largest_wins_and_nan_never_does() {
        for isa in Isa::available() {
            let mut logits = vec![0.5; 37];
            logits[20] = 2.0;
            logits[35] = 2.0;
            logits[3] = f32::NAN;
            logits[36] = f32::NAN;
            assert_eq!(argmax(isa, &logits), (20, 2.0));
            assert_eq!(argmax(isa, &[f32::NAN; 20]).0, 0);
        }
    }

    #[test]
    fn weights_are_exponentials_and_the_same_on_every_instruction_set() {
        let logits: Vec<f32> = (0..53).map(|i| ((i * 29) % 53) as f32 / 4.0 - 6.0).collect();
        let mut first = None;
        for isa in Isa::available() {
            let mut out = Vec::new();
            let sum = exp_weights(isa, &mut out, &logits, argmax(isa, &logits).1, 0.7);
            let expected: f64 = logits.iter().map(|x| (f64::from(*x - 7.0) * 0.7).exp()).sum();
            assert!((sum - expected).abs() < 1e-6 * expected, "{sum} {expected}");
            let bits = (sum.to_bits(), out.clone());
            assert_eq!(&bits, first.get_or_insert_with(|| bits.clone()));
        }
    }
}
