//! The facts of a model that its weights' shapes and its arithmetic follow from.

/// A decoder of the Llama family.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `llama`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub layer_count: usize,
    /// Query heads; a multiple of `kv_head_count`.
    pub head_count: usize,
    /// Key and value heads.
    pub kv_head_count: usize,
    /// Elements per head; even.
    pub head_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Largest position + 1.
    pub context_length: usize,
    /// Added to the mean square in each norm.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Whether the output matrix is the embedding.
    pub tied_embeddings: bool,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Token that begins one.
    pub bos_token_id: Option<u32>,
}

/// Rotary position embedding over the whole head, half-split pairs `(i, i + dim / 2)`.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub base: f64,
    /// Rotated elements of a head.
    pub dim: usize,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// Fixed changes of the frequency table.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
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
    /// Explicit divisors of each frequency, as GGUF files carry them (`rope_freqs.weight`), one for each pair.
    Factors(Vec<f32>),
}

impl RopeConfig {
    /// Angle per position of each of the `dim / 2` pairs, computed in f64.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        (0..self.dim / 2)
            .map(|pair| {
                let plain = self.base.powf(-2.0 * pair as f64 / self.dim as f64);
                (match &self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Factors(factors) => plain / f64::from(factors[pair]),
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_context_length,
                    } => {
                        let original = *original_context_length as f64;
                        let wavelength = std::f64::consts::TAU / plain;
                        if wavelength < original / high_freq_factor {
                            plain
                        } else if wavelength > original / low_freq_factor {
                            plain / factor
                        } else {
                            let smooth =
                                (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                            (1.0 - smooth) * plain / factor + smooth * plain
                        }
                    }
                }) as f32
            })
            .collect()
    }

    /// One canonical line, part of the KV layout's fingerprint.
    pub fn describe(&self) -> String {
        let scaling = match &self.scaling {
            RopeScaling::None => "none".to_owned(),
            RopeScaling::Factors(factors) => format!("factors:{factors:?}"),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_length,
            } => {
                format!("llama3:{factor},{low_freq_factor},{high_freq_factor},{original_context_length}")
            }
        };
        format!("base={},dim={},scaling={scaling}", self.base, self.dim)
    }
}

/// Bounds that no model in use comes near: they keep hostile numbers from overflowing products or asking for huge memory.
pub(crate) const SIZE_MAX: usize = 1 << 24;
/// See [`SIZE_MAX`].
pub(crate) const LAYERS_MAX: usize = 4096;

impl ModelConfig {
    /// What is wrong with the numbers, as (key, found, expected) in our names.
    pub(crate) fn contradiction(&self) -> Option<(&'static str, String, String)> {
        let sizes: [(&'static str, usize); 8] = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.head_count),
            ("num_key_value_heads", self.kv_head_count),
            ("head_dim", self.head_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.context_length),
            ("num_hidden_layers", self.layer_count),
        ];
        for (key, value) in sizes {
            let max = if key == "num_hidden_layers" {
                LAYERS_MAX
            } else {
                SIZE_MAX
            };
            if value == 0 || value > max {
                return Some((key, format!("is {value}"), format!("1 to {max}")));
            }
        }
        if !self.head_count.is_multiple_of(self.kv_head_count) {
            let expected = format!("a divisor of num_attention_heads {}", self.head_count);
            return Some(("num_key_value_heads", format!("is {}", self.kv_head_count), expected));
        }
        if !self.head_size.is_multiple_of(2) || self.head_count * self.head_size > SIZE_MAX {
            return Some(("head_dim", format!("is {}", self.head_size), "an even number".into()));
        }
        if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps < 1.0) {
            return Some((
                "rms_norm_eps",
                format!("is {}", self.rms_norm_eps),
                "0 or more, and less than 1".into(),
            ));
        }
        if !(self.rope.base > 1.0 && self.rope.base.is_finite()) {
            return Some((
                "rope_theta",
                format!("is {}", self.rope.base),
                "a number above 1".into(),
            ));
        }
        if self.rope.dim != self.head_size {
            let expected = format!("head_dim {}: partial rotation is not supported", self.head_size);
            return Some(("rope dimension", format!("is {}", self.rope.dim), expected));
        }
        match &self.rope.scaling {
            RopeScaling::Factors(factors)
                if factors.len() != self.rope.dim / 2 || !factors.iter().all(|f| f.is_finite() && *f > 0.0) =>
            {
                let expected = format!("{} positive numbers", self.rope.dim / 2);
                return Some(("rope_freqs.weight", format!("has {} values", factors.len()), expected));
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_length,
            } if !(*factor >= 1.0
                && *low_freq_factor > 0.0
                && high_freq_factor > low_freq_factor
                && high_freq_factor.is_finite()
                && factor.is_finite()
                && *original_context_length > 0) =>
            {
                let expected = "factor >= 1 and 0 < low_freq_factor < high_freq_factor".to_owned();
                return Some(("rope_scaling", self.rope.describe(), expected));
            }
            _ => {}
        }
        None
    }
}
