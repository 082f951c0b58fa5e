//! What the forward pass needs to know of a model, checked once.

use crate::error::EngineError;

/// Sizes and constants of a Llama-family model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated layer.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub layer_count: usize,
    /// Query heads.
    pub head_count: usize,
    /// Key and value heads.
    pub kv_head_count: usize,
    /// Elements per head.
    pub head_size: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Positions are below this.
    pub context_length: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f32,
    /// Inverse frequencies of the rotary embedding; twice as many elements of each head rotate.
    pub inverse_frequencies: Vec<f32>,
    /// Canonical description of the rotary embedding.
    pub rope: String,
    /// Digest of configuration and weights, lower-case hex.
    pub revision: String,
}

impl ModelSpec {
    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`EngineError::Configuration`].
    pub fn check(&self) -> Result<(), EngineError> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("layer_count", self.layer_count),
            ("head_count", self.head_count),
            ("kv_head_count", self.kv_head_count),
            ("head_size", self.head_size),
            ("vocab_size", self.vocab_size),
            ("context_length", self.context_length),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(EngineError::Configuration(format!("{name} is 0")));
        }
        if !self.head_count.is_multiple_of(self.kv_head_count) {
            let (heads, kv_heads) = (self.head_count, self.kv_head_count);
            return Err(EngineError::Configuration(format!(
                "{heads} query heads do not divide among {kv_heads} KV heads"
            )));
        }
        let rotated = self.inverse_frequencies.len() * 2;
        if rotated > self.head_size {
            let head_size = self.head_size;
            return Err(EngineError::Configuration(format!(
                "{rotated} rotated elements in heads of {head_size}"
            )));
        }
        Ok(())
    }
}
