//! Models of random weights in the shape of real ones: for speed, without a file.

use crate::engine::{Engine, EngineOptions};
use crate::error::EngineError;
use crate::random::philox4x32;
use crate::weights::{LayerExtras, LayerWeights, Weights};
use kvasir_kernels::{PackedMatrix, WeightType};
use kvasir_model::{LayerOptions, ModelConfig, RopeConfig, RopeScaling};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// An engine over random weights; `name` is `SHAPE:TYPE` with the shapes `tiny`, `smollm2` (135 M), `llama-1b` (Llama 3.2 1B) and `llama-8b`
/// (Llama 3 8B), each also with fewer layers as `llama-8b/4`, and the types `f32`, `bf16`, `bf16-pairs`, `q8_0`, `q5_0`, `q4_1`, `q4_k` (with a
/// head of `q6_k`, as files have it).
///
/// # Errors
/// [`EngineError::Configuration`] for another name; what keeps any model from being made.
pub fn engine(name: &str, options: EngineOptions) -> Result<Engine, EngineError> {
    let (config, weights) = model(name)?;
    Engine::from_weights(config, format!("random {name}"), weights, options)
}

/// The same weights, for any device.
///
/// # Errors
/// [`EngineError::Configuration`] for another name.
pub fn model(name: &str) -> Result<(ModelConfig, Weights), EngineError> {
    let unknown = || {
        EngineError::Configuration(format!(
            "random model is {name:?}; use tiny, smollm2, llama-1b or llama-8b, a colon, and f32, bf16, bf16-pairs, q8_0, q5_0, q4_1 or q4_k"
        ))
    };
    let (shape, weight_type) = name.split_once(':').ok_or_else(unknown)?;
    let weight_type = match weight_type {
        "f32" => WeightType::F32,
        "bf16" => WeightType::Bf16,
        "bf16-pairs" => WeightType::Bf16Pairs,
        "q8_0" => WeightType::Q8_0,
        "q5_0" => WeightType::Q5_0,
        "q4_1" => WeightType::Q4_1,
        "q4_k" => WeightType::Q4_K,
        _ => return Err(unknown()),
    };
    let config = config(shape).ok_or_else(unknown)?;
    let weights = weights(&config, weight_type)?;
    Ok((config, weights))
}

/// Sizes of a shape's name; none for another name.
pub fn config(shape: &str) -> Option<ModelConfig> {
    let (name, layers) = match shape.split_once('/') {
        Some((name, layers)) => (name, Some(layers.parse().ok().filter(|layers| *layers > 0)?)),
        None => (shape, None),
    };
    let mut config = match name {
        "tiny" => llama([64, 96, 2, 4, 2, 16, 128]),
        "smollm2" => llama([576, 1536, 30, 9, 3, 64, 49_152]),
        "llama-1b" => llama([2048, 8192, 16, 32, 8, 64, 128_256]),
        "llama-8b" => llama([4096, 14_336, 32, 32, 8, 128, 128_256]),
        _ => return None,
    };
    if name == "llama-8b" {
        config.tied_embeddings = false;
        config.rope.base = 500_000.0;
    }
    config.layer_count = layers.unwrap_or(config.layer_count).min(config.layer_count);
    Some(config)
}

/// A Llama with tied embeddings.
fn llama(
    [
        hidden_size,
        intermediate_size,
        layer_count,
        head_count,
        kv_head_count,
        head_size,
        vocab_size,
    ]: [usize; 7],
) -> ModelConfig {
    ModelConfig {
        architecture: "llama".into(),
        hidden_size,
        intermediate_size,
        layer_count,
        head_count,
        kv_head_count,
        head_size,
        vocab_size,
        context_length: 8192,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            base: 100_000.0,
            dim: head_size,
            scaling: RopeScaling::None,
        },
        options: LayerOptions::default(),
        tied_embeddings: true,
        eos_token_ids: Vec::new(),
        bos_token_id: None,
    }
}

fn weights(config: &ModelConfig, weight_type: WeightType) -> Result<Weights, EngineError> {
    let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
    let (queries, kv) = (
        config.head_count * config.head_size,
        config.kv_head_count * config.head_size,
    );
    let matrix = |rows, cols| random_matrix(weight_type, rows, cols);
    // As files have it: a head of four bits costs accuracy.
    let head_type = match weight_type {
        WeightType::Q4_K => WeightType::Q6_K,
        quantised if quantised.is_quantised() => WeightType::Q8_0,
        dense => dense,
    };
    let layer = |_: usize| {
        Ok(LayerWeights {
            attention_norm: vec![1.0; hidden],
            query: matrix(queries, hidden)?,
            key: matrix(kv, hidden)?,
            value: matrix(kv, hidden)?,
            attention_output: matrix(hidden, queries)?,
            mlp_norm: vec![1.0; hidden],
            gate: matrix(mlp, hidden)?,
            up: matrix(mlp, hidden)?,
            down: matrix(hidden, mlp)?,
            extras: LayerExtras::default(),
        })
    };
    let output = match config.tied_embeddings {
        true => None,
        false => Some(random_matrix(head_type, config.vocab_size, hidden)?),
    };
    Ok(Weights {
        embedding: random_matrix(head_type, config.vocab_size, hidden)?,
        output_norm: vec![1.0; hidden],
        output,
        layers: in_parallel(config.layer_count, layer)?,
    })
}

/// `of(0)..of(count)`, on all cores: eight billion weights take minutes on one.
fn in_parallel<T: Send>(
    count: usize,
    of: impl Fn(usize) -> Result<T, EngineError> + Sync,
) -> Result<Vec<T>, EngineError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    let next = AtomicUsize::new(0);
    let made = Mutex::new(Vec::with_capacity(count));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let one = of(index);
                    made.lock().unwrap_or_else(PoisonError::into_inner).push((index, one));
                }
            });
        }
    });
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.sort_by_key(|(index, _)| *index);
    made.into_iter().map(|(_, one)| one).collect()
}

/// Small weights with random low bits and sane scales.
fn random_matrix(weight_type: WeightType, rows: usize, cols: usize) -> Result<PackedMatrix, EngineError> {
    let mut bytes = vec![0; rows * weight_type.row_bytes(cols)];
    for (index, chunk) in bytes.chunks_mut(16).enumerate() {
        let words = philox4x32([index as u32, rows as u32, 0, 0], [1, 2]);
        let random: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        chunk.copy_from_slice(&random[..chunk.len()]);
    }
    // Scales and minima that keep activations near one: 0.00098 and -0.0039 in f16, the K-quants' before their integer scales.
    let (scale, minimum, fine) = (0x1400_u16, 0x9c00_u16, 0x0100_u16);
    let fields: &[(usize, u16)] = match weight_type {
        WeightType::F32 | WeightType::F16 | WeightType::Bf16 | WeightType::Bf16Pairs => &[],
        WeightType::Q8_0 | WeightType::Q4_0 | WeightType::Q5_0 => &[(0, scale)],
        WeightType::Q4_1 => &[(0, scale), (2, minimum)],
        WeightType::Q4_K | WeightType::Q5_K => &[(0, fine), (2, fine)],
        WeightType::Q6_K => &[(208, fine)],
    };
    let unit_bytes = weight_type.row_bytes(weight_type.block_len());
    for unit in bytes.chunks_exact_mut(unit_bytes) {
        for (at, value) in fields {
            unit[*at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        // Of dense weights keep sign and mantissa, with an exponent near 2^-6.
        match weight_type {
            WeightType::F32 => unit[3] = unit[3] & 0x80 | 0x3c,
            WeightType::F16 => unit[1] = unit[1] & 0x83 | 0x20,
            WeightType::Bf16 | WeightType::Bf16Pairs => unit[1] = unit[1] & 0x80 | 0x3c,
            _ => {}
        }
    }
    PackedMatrix::pack(weight_type, rows, cols, &bytes).map_err(|source| EngineError::Weight {
        tensor: "random".into(),
        source,
    })
}
