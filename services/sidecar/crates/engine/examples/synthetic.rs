//! Speed of the engine on random weights of SmolLM2-135M's shape: `cargo run --release --example synthetic -- [q4_1|q8_0|bf16|f32] [threads]`.

use kvasir_engine::{
    Engine, EngineError, EngineOptions, KvDtype, LayerExtras, LayerWeights, PackedMatrix, WeightFormat, WeightType,
    Weights, bench, random::philox4x32,
};
use kvasir_model::{LayerOptions, ModelConfig, RopeConfig, RopeScaling};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let weight_type = match arguments.first().map_or("q4_1", String::as_str) {
        "q4_1" => WeightType::Q4_1,
        "q8_0" => WeightType::Q8_0,
        "bf16" => WeightType::Bf16,
        "f32" => WeightType::F32,
        other => return Err(format!("weight type is {other}; use q4_1, q8_0, bf16 or f32").into()),
    };
    let threads = arguments.get(1).map_or(Ok(2), |text| text.parse())?;
    let config = ModelConfig {
        architecture: "llama".into(),
        hidden_size: 576,
        intermediate_size: 1536,
        layer_count: 30,
        head_count: 9,
        kv_head_count: 3,
        head_size: 64,
        vocab_size: 49_152,
        context_length: 8192,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            base: 100_000.0,
            dim: 64,
            scaling: RopeScaling::None,
        },
        options: LayerOptions::default(),
        tied_embeddings: true,
        eos_token_ids: Vec::new(),
        bos_token_id: None,
    };
    let head_type = if weight_type.is_quantised() {
        WeightType::Q8_0
    } else {
        weight_type
    };
    let matrix = |weight_type, rows, cols| random_matrix(weight_type, rows, cols);
    let layers = (0..config.layer_count)
        .map(|_| {
            Ok(LayerWeights {
                attention_norm: vec![1.0; 576],
                query: matrix(weight_type, 576, 576)?,
                key: matrix(weight_type, 192, 576)?,
                value: matrix(weight_type, 192, 576)?,
                attention_output: matrix(weight_type, 576, 576)?,
                mlp_norm: vec![1.0; 576],
                gate: matrix(weight_type, 1536, 576)?,
                up: matrix(weight_type, 1536, 576)?,
                down: matrix(weight_type, 576, 1536)?,
                extras: LayerExtras::default(),
            })
        })
        .collect::<Result<Vec<_>, EngineError>>()?;
    let weights = Weights {
        embedding: matrix(head_type, 49_152, 576)?,
        output_norm: vec![1.0; 576],
        output: None,
        layers,
    };
    let options = EngineOptions {
        kv_bytes: 1 << 30,
        block_size: 32,
        kv_dtype: KvDtype::Bf16,
        threads,
        step_token_max: 4096,
        weights: WeightFormat::Stored,
    };
    let mut engine = Engine::from_weights(config, "synthetic".into(), weights, options)?;
    let report = bench::run(&mut engine, &bench::BenchOptions::default())?;
    println!(
        "{} MB of weights each step, {}",
        report.weight_bytes_per_step / 1_000_000,
        report.device
    );
    for (name, measurements) in [("decode, batch", &report.decode), ("prefill, length", &report.prefill)] {
        for m in measurements {
            println!(
                "{name} {}: {:.0} tokens/s (best {:.0})",
                m.size, m.tokens_per_second, m.best_tokens_per_second
            );
        }
    }
    Ok(())
}

/// Small weights with random low bits and sane scales.
fn random_matrix(weight_type: WeightType, rows: usize, cols: usize) -> Result<PackedMatrix, EngineError> {
    let mut bytes = vec![0; rows * weight_type.row_bytes(cols)];
    for (index, chunk) in bytes.chunks_mut(16).enumerate() {
        let words = philox4x32([index as u32, rows as u32, 0, 0], [1, 2]);
        let random: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        chunk.copy_from_slice(&random[..chunk.len()]);
    }
    let (scale, minimum) = (0x1400_u16.to_le_bytes(), 0x9c00_u16.to_le_bytes()); // 0.00098 and -0.0039 in f16.
    match weight_type {
        WeightType::Q8_0 => bytes
            .chunks_exact_mut(34)
            .for_each(|block| block[..2].copy_from_slice(&scale)),
        WeightType::Q4_0 => bytes
            .chunks_exact_mut(18)
            .for_each(|block| block[..2].copy_from_slice(&scale)),
        WeightType::Q4_1 => bytes.chunks_exact_mut(20).for_each(|block| {
            block[..2].copy_from_slice(&scale);
            block[2..4].copy_from_slice(&minimum);
        }),
        // Keep sign and mantissa, force an exponent near 2^-6.
        WeightType::Bf16 => bytes.chunks_exact_mut(2).for_each(|e| e[1] = e[1] & 0x80 | 0x3c),
        WeightType::F16 => bytes.chunks_exact_mut(2).for_each(|e| e[1] = e[1] & 0x83 | 0x20),
        WeightType::F32 => bytes.chunks_exact_mut(4).for_each(|e| e[3] = e[3] & 0x80 | 0x3c),
    }
    PackedMatrix::pack(weight_type, rows, cols, &bytes).map_err(|source| EngineError::Weight {
        tensor: "random".into(),
        source,
    })
}
