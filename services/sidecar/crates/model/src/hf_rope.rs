//! Rotary embedding as config.json describes it: `rope_theta` and `rope_scaling`, or both in `rope_parameters`. The meaning of each key is that of
//! transformers' `modeling_rope_utils.py`.

use serde_json::Value;

use crate::hf_config::RawConfig;
use crate::hf_json::{FILE, number, present, size};
use crate::rope::yarn_attention_factor;
use crate::{LoadError, RopeConfig, RopeScaling};

/// `positions` is `max_position_embeddings`, which the original context is when it is not given.
pub(crate) fn rope_config(raw: &RawConfig, head_size: usize, positions: usize) -> Result<RopeConfig, LoadError> {
    let parameters = present(&raw.rope_parameters);
    let either = |own: &'_ Option<Value>, key: &str| {
        let value = present(own).or_else(|| parameters.and_then(|p| p.get(key)).filter(|value| !value.is_null()));
        value.map(|value| number(key, value)).transpose()
    };
    let share = either(&raw.partial_rotary_factor, "partial_rotary_factor")?.unwrap_or(1.0);
    if !(share > 0.0 && share <= 1.0) {
        let found = format!("is {share}");
        return Err(LoadError::key(
            FILE,
            "partial_rotary_factor",
            found,
            "above 0, at most 1",
        ));
    }
    Ok(RopeConfig {
        base: either(&raw.rope_theta, "rope_theta")?.unwrap_or(10_000.0),
        dim: (head_size as f64 * share) as usize,
        scaling: match present(&raw.rope_scaling).or(parameters) {
            Some(value) => scaling(&Keys(value), positions)?,
            None => RopeScaling::None,
        },
    })
}

/// The object with the scaling's keys.
struct Keys<'a>(&'a Value);

impl Keys<'_> {
    fn optional(&self, key: &str) -> Result<Option<f64>, LoadError> {
        let value = self.0.get(key).filter(|value| !value.is_null());
        value
            .map(|value| number(&format!("rope_scaling.{key}"), value))
            .transpose()
    }

    fn required(&self, key: &str) -> Result<f64, LoadError> {
        let absent = || LoadError::key(FILE, &format!("rope_scaling.{key}"), "is absent", "a number");
        self.optional(key)?.ok_or_else(absent)
    }

    fn original_context_length(&self, positions: usize) -> Result<usize, LoadError> {
        let key = "original_max_position_embeddings";
        match self.0.get(key).filter(|value| !value.is_null()) {
            Some(value) => size(&format!("rope_scaling.{key}"), Some(value)),
            None => Ok(positions),
        }
    }
}

fn scaling(keys: &Keys<'_>, positions: usize) -> Result<RopeScaling, LoadError> {
    let kind = keys.0.get("rope_type").or_else(|| keys.0.get("type"));
    match kind.and_then(Value::as_str).unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear {
            factor: keys.required("factor")?,
        }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: keys.required("factor")?,
            low_freq_factor: keys.required("low_freq_factor")?,
            high_freq_factor: keys.required("high_freq_factor")?,
            original_context_length: keys.original_context_length(positions)?,
        }),
        "yarn" => {
            let factor = keys.required("factor")?;
            let weights = (keys.optional("mscale")?, keys.optional("mscale_all_dim")?);
            let given = keys.optional("attention_factor")?;
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: keys.optional("beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.optional("beta_slow")?.unwrap_or(1.0),
                truncate: keys.0.get("truncate").and_then(Value::as_bool).unwrap_or(true),
                attention_factor: given.unwrap_or(match weights {
                    (Some(weight), Some(all)) if weight != 0.0 && all != 0.0 => {
                        yarn_attention_factor(factor, weight) / yarn_attention_factor(factor, all)
                    }
                    _ => yarn_attention_factor(factor, 1.0),
                }),
                original_context_length: keys.original_context_length(positions)?,
            })
        }
        other => Err(LoadError::unsupported(
            FILE,
            format!("rope type {other}"),
            "default, linear, llama3, yarn",
        )),
    }
}
