//! A rotary embedding as one line of text: part of the KV layout's fingerprint, and enough to turn keys without the model.

use crate::rope::{RopeConfig, RopeScaling};

impl RopeConfig {
    /// One canonical line, of which [`RopeConfig::parse`] makes the same numbers again.
    pub fn describe(&self) -> String {
        let scaling = match &self.scaling {
            RopeScaling::None => "none".to_owned(),
            RopeScaling::Linear { factor } => format!("linear:{factor}"),
            RopeScaling::Factors(factors) => format!("factors:{factors:?}"),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_length,
            } => {
                format!("llama3:{factor},{low_freq_factor},{high_freq_factor},{original_context_length}")
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                truncate,
                attention_factor,
                original_context_length,
            } => {
                format!("yarn:{factor},{beta_fast},{beta_slow},{truncate},{attention_factor},{original_context_length}")
            }
        };
        format!("base={},dim={},scaling={scaling}", self.base, self.dim)
    }

    /// What a line of [`RopeConfig::describe`] describes. None for any other text, and for numbers that no model of this head size has.
    pub fn parse(text: &str, head_size: usize) -> Option<Self> {
        let (base, rest) = text.strip_prefix("base=")?.split_once(",dim=")?;
        let (dim, scaling) = rest.split_once(",scaling=")?;
        let rope = Self {
            base: base.parse().ok()?,
            dim: dim.parse().ok()?,
            scaling: scaling_from(scaling)?,
        };
        (rope.describe() == text && rope.contradiction(head_size).is_none()).then_some(rope)
    }
}

fn scaling_from(text: &str) -> Option<RopeScaling> {
    if text == "none" {
        return Some(RopeScaling::None);
    }
    let (kind, numbers) = text.split_once(':')?;
    let parts: Vec<&str> = numbers.trim_matches(['[', ']']).split(',').map(str::trim).collect();
    let number = |index: usize| parts.get(index)?.parse::<f64>().ok();
    Some(match kind {
        "linear" => RopeScaling::Linear { factor: number(0)? },
        "factors" => RopeScaling::Factors(parts.iter().map(|part| part.parse().ok()).collect::<Option<_>>()?),
        "llama3" => RopeScaling::Llama3 {
            factor: number(0)?,
            low_freq_factor: number(1)?,
            high_freq_factor: number(2)?,
            original_context_length: parts.get(3)?.parse().ok()?,
        },
        "yarn" => RopeScaling::Yarn {
            factor: number(0)?,
            beta_fast: number(1)?,
            beta_slow: number(2)?,
            truncate: parts.get(3)?.parse().ok()?,
            attention_factor: number(4)?,
            original_context_length: parts.get(5)?.parse().ok()?,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(scaling: RopeScaling) -> RopeConfig {
        RopeConfig {
            base: 10_000.0,
            dim: 4,
            scaling,
        }
    }

    #[test]
    fn a_line_makes_the_same_frequencies_again() {
        let scalings = [
            RopeScaling::None,
            RopeScaling::Linear { factor: 2.5 },
            RopeScaling::Factors(vec![1.0, 1.100_000_1]),
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context_length: 8192,
            },
            RopeScaling::Yarn {
                factor: 4.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate: true,
                attention_factor: 0.1 + 1.0 / 3.0,
                original_context_length: 32_768,
            },
        ];
        for rope in scalings.map(with) {
            let line = rope.describe();
            assert_eq!(RopeConfig::parse(&line, 8), Some(rope), "{line}");
        }
    }

    #[test]
    fn other_texts_and_numbers_that_no_model_has_are_none() {
        for text in [
            "",
            "none",
            "base=10000,dim=4,scaling=",
            "base=1e4,dim=4,scaling=none",
            "base=10000,dim=5,scaling=none",
            "base=10000,dim=4,scaling=linear:nan",
            "base=10000,dim=4,scaling=linear:2,3",
            "base=10000,dim=4,scaling=factors:[1.0]",
            "base=10000,dim=4,scaling=yarn:4,32,1,true,1",
            "base=10000,dim=4,scaling=none,",
        ] {
            assert_eq!(RopeConfig::parse(text, 8), None, "{text}");
        }
        assert_eq!(RopeConfig::parse("base=10000,dim=4,scaling=none", 2), None);
    }
}
