//! A whole model of random weights on the GPU: decode and prefill as the engine runs them, with graphs and a step always in flight.

use super::shapes::{HEAD_SIZE, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, VOCAB};
use kvasir_cuda::driver::CudaDevice;
use kvasir_cuda::{CudaBackend, CudaOptions, Device, DeviceError, DeviceWeights, Division, KvMemory};
use kvasir_engine::{Backend, Past, Reading, SamplingParams, StepError, TokenSource};
use kvasir_kernels::Span;
use kvasir_model::{LayerOptions, ModelConfig, RopeConfig, RopeScaling};
use std::sync::Arc;
use std::time::Instant;

const BLOCK: usize = 32;
/// Steps that warm up, and that count.
const WARM_UP: usize = 8;
const STEPS: usize = 50;

/// Sizes and times of what is measured.
#[derive(Debug, Clone)]
pub struct ModelSize {
    /// Of the model.
    pub config: ModelConfig,
    /// Sequences that decode together, each with this context.
    pub batches: Vec<usize>,
    /// Context.
    pub context: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
}

impl ModelSize {
    /// Llama-3-8B.
    pub fn llama_8b() -> Self {
        Self {
            config: ModelConfig {
                architecture: "llama".into(),
                hidden_size: HIDDEN,
                intermediate_size: INTERMEDIATE,
                layer_count: LAYERS,
                head_count: HEADS,
                kv_head_count: KV_HEADS,
                head_size: HEAD_SIZE,
                vocab_size: VOCAB,
                context_length: 8192 + 64,
                rms_norm_eps: 1e-5,
                rope: RopeConfig {
                    base: 500_000.0,
                    dim: HEAD_SIZE,
                    scaling: RopeScaling::None,
                },
                options: LayerOptions::default(),
                tied_embeddings: false,
                eos_token_ids: Vec::new(),
                bos_token_id: None,
            },
            batches: vec![1, 64],
            context: 4096,
            prompt: 8192,
        }
    }

    /// What a simulation runs in seconds.
    pub fn tiny() -> Self {
        let mut size = Self::llama_8b();
        size.config = ModelConfig {
            hidden_size: 64,
            intermediate_size: 96,
            layer_count: 2,
            head_count: 4,
            kv_head_count: 2,
            head_size: 16,
            vocab_size: 128,
            ..size.config
        };
        size.config.rope.dim = 16;
        Self {
            batches: vec![1, 3],
            context: 40,
            prompt: 33,
            ..size
        }
    }
}

/// Prints the lines of the results' page; `copy_rate` in bytes a second and `product_rate` in operations a second are the run's own ceilings.
///
/// # Errors
/// What failed, in one line.
pub fn model_bench(
    device: &Arc<dyn Device>,
    transfers: Arc<dyn Device>,
    size: &ModelSize,
    [copy_rate, product_rate]: [f64; 2],
) -> Result<(), String> {
    let config = &size.config;
    let mut next = 0_u32;
    let mut fill = |bytes: usize| filled(&**device, bytes, &mut next);
    let weights = DeviceWeights::made_of(config, &mut fill).map_err(text)?;
    let weight_bytes = weights.bytes_per_step as f64;
    let tokens = (size.batches.iter().max().unwrap_or(&1) * (size.context + STEPS + WARM_UP + 2)).max(size.prompt + 1);
    let blocks = tokens.div_ceil(BLOCK) + size.batches.iter().max().unwrap_or(&1);
    let token_bytes = config.layer_count * 2 * config.kv_head_count * config.head_size * 2;
    let options = CudaOptions {
        kv_memory: KvMemory::Bytes((blocks * BLOCK * token_bytes) as u64),
        block_size: BLOCK,
        division: Division::FAST,
        rows_max: size.prompt,
        graphs: true,
    };
    let mut backend =
        CudaBackend::of_weights(Arc::clone(device), transfers, config.clone(), weights, options).map_err(text)?;
    println!("\n| whole model | ms | tokens/s | of the ceiling |\n|---|---|---|---|");
    for batch in size.batches.iter().copied() {
        let seconds = decode(&mut backend, size, batch).map_err(text)?;
        let bytes = weight_bytes + (batch * size.context * token_bytes) as f64;
        println!(
            "| decode step, {batch} of {} context | {:.3} | {:.0} | {:.0} % |",
            size.context,
            seconds * 1e3,
            batch as f64 / seconds,
            bytes / copy_rate / seconds * 100.0
        );
    }
    let seconds = prefill(&mut backend, size).map_err(text)?;
    let (queries, kv) = (
        config.head_count * config.head_size,
        2 * config.kv_head_count * config.head_size,
    );
    let of_weights = config.hidden_size * (2 * queries + kv + 3 * config.intermediate_size);
    let operations =
        (2 * config.layer_count * size.prompt) as f64 * (of_weights as f64 + (size.prompt * queries) as f64);
    println!(
        "| prefill of {} tokens | {:.1} | {:.0} | {:.0} % |",
        size.prompt,
        seconds * 1e3,
        size.prompt as f64 / seconds,
        operations / product_rate / seconds * 100.0
    );
    Ok(())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Numbers of about a normal distribution, small enough for sums of thousands of them; no two buffers begin alike.
fn filled(device: &dyn Device, bytes: usize, next: &mut u32) -> Result<kvasir_cuda::Buffer, DeviceError> {
    *next += 1;
    let mut random = crate::suite::Random::new(u64::from(*next));
    let noise: Vec<u8> = random
        .rounded((bytes / 2).clamp(1, 1 << 16), 0.03)
        .iter()
        .flat_map(|x| x.to_ne_bytes())
        .collect();
    let buffer = device.allocate(bytes)?;
    let repeated: Vec<u8> = noise.iter().copied().cycle().take(bytes.min(16 << 20)).collect();
    for offset in (0..bytes).step_by(repeated.len().max(1)) {
        let count = repeated.len().min(bytes - offset);
        device.write(&buffer, offset, &repeated[..count])?;
    }
    Ok(buffer)
}

/// Seconds of a step, a step always in flight.
fn decode(backend: &mut CudaBackend, size: &ModelSize, batch: usize) -> Result<f64, StepError> {
    let each = (size.context + STEPS + WARM_UP + 2).div_ceil(BLOCK);
    let tables: Vec<Vec<u32>> = (0..batch)
        .map(|i| (i * each..(i + 1) * each).map(|block| block as u32).collect())
        .collect();
    // The KV that decode reads has to be written: in a simulation nothing else may be read.
    for table in &tables {
        prompt(backend, size.context, table)?;
    }
    let params = SamplingParams::default();
    let readings: Vec<Reading<'_>> = (0..batch)
        .map(|_| Reading::Sample {
            params: &params,
            past: Past::default(),
            index: 0,
        })
        .collect();
    let rows: Vec<usize> = (0..batch).collect();
    let launch = |backend: &mut CudaBackend, step: usize| {
        let spans = tables.iter().map(|blocks| Span {
            start_position: size.context + step,
            token_count: 1,
            blocks,
        });
        let token = |i| match step {
            0 => TokenSource::Known(1),
            _ => TokenSource::Chosen(i),
        };
        let tokens: Vec<TokenSource> = (0..batch).map(token).collect();
        backend.launch(&tokens, spans.collect(), &rows, &mut |_| {})
    };
    let mut began = Instant::now();
    launch(backend, 0)?;
    backend.read(&readings)?;
    for step in 1..WARM_UP + STEPS {
        launch(backend, step)?;
        backend.collect(&mut |_| {})?;
        backend.read(&readings)?;
        if step == WARM_UP {
            began = Instant::now();
        }
    }
    backend.collect(&mut |_| {})?;
    Ok(began.elapsed().as_secs_f64() / (STEPS - 1) as f64)
}

/// Computes a prompt in one pass and waits for it.
fn prompt(backend: &mut CudaBackend, length: usize, blocks: &[u32]) -> Result<(), StepError> {
    let span = Span {
        start_position: 0,
        token_count: length,
        blocks,
    };
    let tokens: Vec<TokenSource> = (0..length).map(|i| TokenSource::Known((i % 97) as u32)).collect();
    backend.launch(&tokens, vec![span], &[], &mut |_| {})?;
    backend.read(&[])?;
    backend.collect(&mut |_| {}).map(drop)
}

/// Seconds of a prompt; the median of three after one that warms up.
fn prefill(backend: &mut CudaBackend, size: &ModelSize) -> Result<f64, StepError> {
    let blocks: Vec<u32> = (0..size.prompt.div_ceil(BLOCK) as u32).collect();
    prompt(backend, size.prompt, &blocks)?;
    let mut times = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        prompt(backend, size.prompt, &blocks)?;
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[1])
}

/// The model of the page on a real GPU.
///
/// # Errors
/// What failed, in one line.
pub fn on_gpu(device: &Arc<CudaDevice>, rates: [f64; 2]) -> Result<(), String> {
    let transfers = Arc::new(device.beside().map_err(text)?);
    let shared: Arc<dyn Device> = Arc::clone(device) as Arc<dyn Device>;
    model_bench(&shared, transfers, &ModelSize::llama_8b(), rates)
}
