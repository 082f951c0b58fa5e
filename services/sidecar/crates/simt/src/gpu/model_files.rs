//! A Hugging Face folder of random weights, as large as wanted, written on all cores.

use kvasir_model::{LayerTensor, ModelConfig, TensorId};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes that a thread makes at once.
const CHUNK: usize = 4 << 20;

/// Writes config.json and model.safetensors, in bf16: a Llama of these sizes. Norms are ones; matrices have either sign and absolute values
/// between 2⁻⁷ and 2⁻⁵. A tokenizer is not among the files.
///
/// # Errors
/// Those of the file system, in one line.
pub fn write_model(folder: &Path, config: &ModelConfig) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(folder).map_err(failed)?;
    std::fs::write(folder.join("config.json"), config_json(config)).map_err(failed)?;
    let ids: Vec<TensorId> = TensorId::all(config).collect();
    let (mut table, mut places, mut offset) = (Vec::new(), Vec::new(), 0);
    for id in ids {
        let (rows, cols) = id.shape(config);
        let (bytes, is_norm) = (rows * cols * 2, rows == 1);
        let shape = if is_norm {
            format!("[{cols}]")
        } else {
            format!("[{rows},{cols}]")
        };
        let end = offset + bytes;
        table.push(format!(
            r#""{}":{{"dtype":"BF16","shape":{shape},"data_offsets":[{offset},{end}]}}"#,
            name(id)
        ));
        places.extend(
            (offset..end)
                .step_by(CHUNK)
                .map(|at| (at, CHUNK.min(end - at), is_norm)),
        );
        offset = end;
    }
    // The data begin at a multiple of 8.
    let mut header = format!("{{{}}}", table.join(","));
    header.extend(std::iter::repeat_n(
        ' ',
        header.len().next_multiple_of(8) - header.len(),
    ));
    let file = std::fs::File::create(folder.join("model.safetensors")).map_err(failed)?;
    let begin = 8 + header.len();
    file.set_len((begin + offset) as u64).map_err(failed)?;
    file.write_all_at(&(header.len() as u64).to_le_bytes(), 0)
        .map_err(failed)?;
    file.write_all_at(header.as_bytes(), 8).map_err(failed)?;
    let (next, first_error) = (AtomicUsize::new(0), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let mut chunk = vec![0; CHUNK];
                while let Some((at, bytes, is_norm)) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                    fill(&mut chunk[..*bytes], *at as u64, *is_norm);
                    if let Err(error) = file.write_all_at(&chunk[..*bytes], (begin + at) as u64) {
                        *first_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        return;
                    }
                }
            });
        }
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(failed(error)),
        None => Ok(()),
    }
}

fn fill(out: &mut [u8], seed: u64, is_norm: bool) {
    // Marsaglia's xorshift, from a place of its own for each chunk.
    let mut random = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for weight in out.as_chunks_mut::<2>().0 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let bits = (random >> 48) as u16;
        let weight_bits = if is_norm { 0x3f80 } else { bits & 0x80ff | 0x3c00 };
        *weight = weight_bits.to_le_bytes();
    }
}

fn name(id: TensorId) -> String {
    let (index, part) = match id {
        TensorId::Embedding => return "model.embed_tokens.weight".into(),
        TensorId::OutputNorm => return "model.norm.weight".into(),
        TensorId::Output => return "lm_head.weight".into(),
        TensorId::Layer { index, part } => (index, part),
    };
    let part = match part {
        LayerTensor::AttentionNorm => "input_layernorm.weight",
        LayerTensor::MlpNorm => "post_attention_layernorm.weight",
        LayerTensor::Query => "self_attn.q_proj.weight",
        LayerTensor::Key => "self_attn.k_proj.weight",
        LayerTensor::Value => "self_attn.v_proj.weight",
        LayerTensor::AttentionOutput => "self_attn.o_proj.weight",
        LayerTensor::Gate => "mlp.gate_proj.weight",
        LayerTensor::Up => "mlp.up_proj.weight",
        LayerTensor::Down => "mlp.down_proj.weight",
        LayerTensor::QueryBias => "self_attn.q_proj.bias",
        LayerTensor::KeyBias => "self_attn.k_proj.bias",
        LayerTensor::ValueBias => "self_attn.v_proj.bias",
        LayerTensor::AttentionOutputBias => "self_attn.o_proj.bias",
        LayerTensor::QueryNorm => "self_attn.q_norm.weight",
        LayerTensor::KeyNorm => "self_attn.k_norm.weight",
    };
    format!("model.layers.{index}.{part}")
}

fn config_json(config: &ModelConfig) -> String {
    format!(
        r#"{{"model_type":"llama","hidden_size":{},"intermediate_size":{},"num_hidden_layers":{},"num_attention_heads":{},"num_key_value_heads":{},"head_dim":{},"vocab_size":{},"max_position_embeddings":{},"rms_norm_eps":1e-5,"rope_theta":{:.1},"tie_word_embeddings":{},"eos_token_id":2,"bos_token_id":1,"hidden_act":"silu","torch_dtype":"bfloat16"}}"#,
        config.hidden_size,
        config.intermediate_size,
        config.layer_count,
        config.head_count,
        config.kv_head_count,
        config.head_size,
        config.vocab_size,
        config.context_length,
        config.rope.base,
        config.tied_embeddings,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_engine::synthetic;
    use kvasir_model::ModelSource;

    #[test]
    fn what_is_written_is_a_model_of_these_sizes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = synthetic::config("tiny").expect("a shape");
        (config.vocab_size, config.eos_token_ids, config.bos_token_id) = (300, vec![2], Some(1));
        write_model(folder.path(), &config).expect("it is written");
        let source = ModelSource::open(folder.path()).expect("it is a model");
        assert_eq!(source.config(), &config);
        let gate = TensorId::Layer {
            index: 1,
            part: LayerTensor::Gate,
        };
        let values = source.values(gate).expect("a matrix");
        assert!(values.iter().all(|x| (2f32.powi(-7)..2f32.powi(-5)).contains(&x.abs())));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 1e-3, "signs are not random: {mean}");
        assert!(source.values(TensorId::OutputNorm).is_ok_and(|norm| norm == [1.0; 64]));
    }
}
