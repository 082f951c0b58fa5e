//! A tiny random model, on the simulated device and on the CPU.

use kvasir_cuda::{CudaBackend, CudaOptions, Device, Division, KvMemory};
use kvasir_engine::random::uniform;
use kvasir_engine::{
    Engine, EngineOptions, KvDtype, LayerExtras, LayerWeights, PackedMatrix, WeightFormat, WeightType, Weights,
};
use kvasir_kernels::Cpu;
use kvasir_model::{Activation, LayerOptions, ModelConfig, RopeConfig, RopeScaling};
use kvasir_simt::SimtDevice;
use std::sync::Arc;

pub const VOCAB: usize = 83;
const SIZE: usize = 32;

fn config(options: LayerOptions) -> ModelConfig {
    ModelConfig {
        architecture: "llama".into(),
        hidden_size: 64,
        intermediate_size: 96,
        layer_count: 2,
        head_count: 4,
        kv_head_count: 2,
        head_size: SIZE,
        vocab_size: VOCAB,
        context_length: 512,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            base: 10_000.0,
            dim: SIZE,
            scaling: RopeScaling::None,
        },
        options,
        tied_embeddings: true,
        eos_token_ids: vec![2],
        bos_token_id: None,
    }
}

pub fn weights(config: &ModelConfig) -> Weights {
    let seed = std::cell::Cell::new(0);
    let numbers = |count: usize, size: f64| -> Vec<f32> {
        seed.set(seed.get() + 1);
        (0..count)
            .map(|i| ((uniform(seed.get(), i as u64) * 2.0 - 1.0) * size) as f32)
            .collect()
    };
    let matrix = |rows: usize, cols: usize| {
        let values = numbers(rows * cols, (3.0 / cols as f64).sqrt());
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
            .collect();
        PackedMatrix::pack(WeightType::Bf16, rows, cols, &bytes).unwrap()
    };
    let norm = |width: usize| numbers(width, 0.3).iter().map(|x| 1.0 + x).collect::<Vec<f32>>();
    let (hidden, queries, kv, mlp) = (64, 4 * SIZE, 2 * SIZE, 96);
    let options = &config.options;
    let layers = (0..config.layer_count)
        .map(|_| LayerWeights {
            attention_norm: norm(hidden),
            query: matrix(queries, hidden),
            key: matrix(kv, hidden),
            value: matrix(kv, hidden),
            attention_output: matrix(hidden, queries),
            mlp_norm: norm(hidden),
            gate: matrix(mlp, hidden),
            up: matrix(mlp, hidden),
            down: matrix(hidden, mlp),
            extras: LayerExtras {
                qkv_bias: options.qkv_bias.then(|| [queries, kv, kv].map(|n| numbers(n, 0.5))),
                attention_output_bias: options.attention_output_bias.then(|| numbers(hidden, 0.2)),
                head_norms: options.head_norms.then(|| [norm(SIZE), norm(SIZE)]),
            },
        })
        .collect();
    Weights {
        embedding: matrix(VOCAB, hidden),
        output_norm: norm(hidden),
        output: None,
        layers,
    }
}

pub fn backend(config: &ModelConfig, division: Division, graphs: bool, seed: u64) -> CudaBackend {
    let device: Arc<dyn Device> = Arc::new(SimtDevice::new(32 << 20, seed));
    let options = CudaOptions {
        kv_memory: KvMemory::Bytes(1 << 20),
        block_size: 16,
        division,
        rows_max: 512,
        graphs,
    };
    CudaBackend::new(Arc::clone(&device), device, config.clone(), &weights(config), options).unwrap()
}

/// On the device; without a division, on the CPU.
pub fn engine(config: &ModelConfig, division: Option<Division>) -> Engine {
    engine_with(config, division, true)
}

pub fn engine_with(config: &ModelConfig, division: Option<Division>, graphs: bool) -> Engine {
    let options = EngineOptions {
        kv_bytes: 1 << 20,
        block_size: 16,
        kv_dtype: KvDtype::Bf16,
        shard_count: 1,
        threads: 1,
        step_token_max: 512,
        weights: WeightFormat::Stored,
    };
    match division {
        None => Engine::from_weights(config.clone(), "test".into(), weights(config), options).unwrap(),
        Some(division) => {
            let cpu = Arc::new(Cpu::new(1).unwrap());
            let backend = Box::new(backend(config, division, graphs, 3));
            Engine::with_backend(cpu, backend, config.clone(), "test".into(), options).unwrap()
        }
    }
}

pub fn prompt(length: usize, seed: u64) -> Vec<u32> {
    (0..length)
        .map(|i| (uniform(seed, i as u64) * VOCAB as f64) as u32)
        .collect()
}

pub fn families() -> [ModelConfig; 3] {
    let qwen2 = LayerOptions {
        qkv_bias: true,
        attention_output_bias: true,
        ..LayerOptions::default()
    };
    let others = LayerOptions {
        head_norms: true,
        activation: Activation::GeluTanh,
        embedding_scale: 1.5,
        ..LayerOptions::default()
    };
    [LayerOptions::default(), qwen2, others].map(config)
}
