//! Rotary embedding as GGUF metadata describes it. The meaning of each key is llama.cpp's.

use crate::gguf_config::Keys;
use crate::rope::yarn_attention_factor;
use crate::{LoadError, RopeConfig, RopeScaling, TensorType};

pub(crate) fn rope_config(keys: &Keys<'_>, head_size: usize, positions: usize) -> Result<RopeConfig, LoadError> {
    Ok(RopeConfig {
        base: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        dim: keys.optional("rope.dimension_count")?.unwrap_or(head_size),
        scaling: scaling(keys, positions)?,
    })
}

/// llama3 scaling comes as a tensor of divisors, linear and YaRN by metadata.
fn scaling(keys: &Keys<'_>, positions: usize) -> Result<RopeScaling, LoadError> {
    let file = keys.file;
    if file.entries.contains_key("rope_factors_short.weight") {
        return Err(LoadError::unsupported(
            &file.name,
            "rope scaling longrope",
            "none, linear, yarn, rope_freqs.weight",
        ));
    }
    let factor = keys.number("rope.scaling.factor")?.unwrap_or(1.0);
    match keys.text("rope.scaling.type").unwrap_or("none") {
        "none" => {}
        _ if factor == 1.0 => {}
        "linear" => return Ok(RopeScaling::Linear { factor }),
        "yarn" => {
            let weight = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0)
                * keys.number("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0);
            return Ok(RopeScaling::Yarn {
                factor,
                beta_fast: keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                truncate: true,
                attention_factor: weight * yarn_attention_factor(factor, 1.0),
                original_context_length: keys
                    .optional("rope.scaling.original_context_length")?
                    .unwrap_or(positions),
            });
        }
        kind => {
            return Err(LoadError::unsupported(
                &file.name,
                format!("rope scaling {kind}"),
                "none, linear, yarn, rope_freqs.weight",
            ));
        }
    }
    let Some(entry) = file.entries.get("rope_freqs.weight") else {
        return Ok(RopeScaling::None);
    };
    if entry.tensor_type != TensorType::F32 || entry.dims.len() != 1 {
        let found = format!("has type {:?} and dimensions {:?}", entry.tensor_type, entry.dims);
        return Err(LoadError::tensor(
            &file.name,
            "rope_freqs.weight",
            found,
            "a vector of F32",
        ));
    }
    let bytes = &file.map[entry.begin..entry.end];
    let factors: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let trivial = factors.iter().all(|factor| *factor == 1.0);
    Ok(if trivial {
        RopeScaling::None
    } else {
        RopeScaling::Factors(factors)
    })
}
