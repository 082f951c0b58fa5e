//! Rotary position embedding: which angle each pair of a head turns by per position.

use std::f64::consts::TAU;

/// Rotary position embedding of the first `dim` elements of a head, half-split pairs `(i, i + dim / 2)`.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub base: f64,
    /// Rotated elements of a head; even.
    pub dim: usize,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// Fixed changes of the frequency table.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All frequencies divided (Chen et al., "Extending Context Window of Large Language Models via Position Interpolation", 2023).
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a smooth blend between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context_length / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context_length / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context that the model was first trained for.
        original_context_length: usize,
    },
    /// YaRN (Peng et al., ICLR 2024, section 3): pairs that turn often within the original context are kept, those that turn rarely divided, a
    /// ramp between; rotated vectors are scaled.
    Yarn {
        /// Divisor.
        factor: f64,
        /// Pairs with more turns than this are kept.
        beta_fast: f64,
        /// Pairs with fewer are divided.
        beta_slow: f64,
        /// Whether the ramp's ends are whole pairs.
        truncate: bool,
        /// What rotated queries and keys are multiplied with; see [`yarn_attention_factor`].
        attention_factor: f64,
        /// Context that the model was first trained for.
        original_context_length: usize,
    },
    /// Explicit divisors of each frequency, as GGUF files carry them (`rope_freqs.weight`), one for each pair.
    Factors(Vec<f32>),
}

/// YaRN's scale of rotated queries and keys: `0.1 · weight · ln factor + 1` (equation 22; `weight` is 1 there).
pub(crate) fn yarn_attention_factor(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * weight * factor.ln() + 1.0
    }
}

impl RopeConfig {
    /// Angle per position of each of the `dim / 2` pairs, computed in f64.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        (0..self.dim / 2)
            .map(|pair| self.inverse_frequency(pair) as f32)
            .collect()
    }

    /// What cosines and sines are multiplied with, so that rotated queries and keys are; 1 but for YaRN.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    fn inverse_frequency(&self, pair: usize) -> f64 {
        let plain = self.base.powf(-2.0 * pair as f64 / self.dim as f64);
        match &self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / factor,
            RopeScaling::Factors(factors) => plain / f64::from(factors[pair]),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_length,
            } => {
                let original = *original_context_length as f64;
                let wavelength = TAU / plain;
                if wavelength < original / high_freq_factor {
                    plain
                } else if wavelength > original / low_freq_factor {
                    plain / factor
                } else {
                    let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * plain / factor + smooth * plain
                }
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                truncate,
                original_context_length,
                ..
            } => {
                let pair_with_turns = |turns: f64| {
                    let length = *original_context_length as f64;
                    self.dim as f64 * (length / (turns * TAU)).ln() / (2.0 * self.base.ln())
                };
                let (mut low, mut high) = (pair_with_turns(*beta_fast), pair_with_turns(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(self.dim as f64 - 1.0));
                if low == high {
                    high += 0.001; // As transformers does: a ramp needs a width.
                }
                let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                plain / factor * divided + plain * (1.0 - divided)
            }
        }
    }

    /// What is wrong with the numbers, as (key, found, expected) in Hugging Face's names.
    pub(crate) fn contradiction(&self, head_size: usize) -> Option<(&'static str, String, String)> {
        let above_one = |value: f64| value >= 1.0 && value.is_finite();
        if !(self.base > 1.0 && self.base.is_finite()) {
            return Some(("rope_theta", format!("is {}", self.base), "a number above 1".into()));
        }
        if self.dim == 0 || self.dim > head_size || !self.dim.is_multiple_of(2) {
            let expected = format!("an even number up to head_dim {head_size}");
            return Some(("rope dimension", format!("is {}", self.dim), expected));
        }
        let (sound, expected) = match &self.scaling {
            RopeScaling::None => return None,
            RopeScaling::Factors(factors) => {
                let sound = factors.len() == self.dim / 2 && factors.iter().all(|f| f.is_finite() && *f > 0.0);
                if sound {
                    return None;
                }
                let expected = format!("{} positive numbers", self.dim / 2);
                return Some(("rope_freqs.weight", format!("has {} values", factors.len()), expected));
            }
            RopeScaling::Linear { factor } => (above_one(*factor), "factor >= 1"),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_length,
            } => (
                above_one(*factor)
                    && *low_freq_factor > 0.0
                    && high_freq_factor > low_freq_factor
                    && high_freq_factor.is_finite()
                    && *original_context_length > 0,
                "factor >= 1 and 0 < low_freq_factor < high_freq_factor",
            ),
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                attention_factor,
                original_context_length,
                ..
            } => (
                above_one(*factor)
                    && *beta_slow > 0.0
                    && beta_fast > beta_slow
                    && beta_fast.is_finite()
                    && *attention_factor > 0.0
                    && attention_factor.is_finite()
                    && *original_context_length > 0,
                "factor >= 1, 0 < beta_slow < beta_fast and a positive attention_factor",
            ),
        };
        (!sound).then(|| ("rope_scaling", format!("is {}", self.describe()), expected.to_owned()))
    }
}
