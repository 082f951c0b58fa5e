//! A whole model of random weights on the device: decode and prefill as the engine runs them, with graphs and a step always in flight.

use super::bench::Ceilings;
use super::size::{BLOCK, Size};
use kvasir_cuda::{Buffer, CudaBackend, CudaOptions, Device, DeviceError, DeviceWeights, Division, KvMemory};
use kvasir_engine::{Backend, Past, Reading, SamplingParams, StepError, TokenSource};
use kvasir_kernels::{Relocation, Span};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of random numbers that large buffers repeat.
const REPEATED: usize = 16 << 20;

/// The two streams of a device, and how a model runs there.
pub struct ModelRun {
    /// Of the engine.
    pub engine: Arc<dyn Device>,
    /// Of transfers.
    pub transfers: Arc<dyn Device>,
    /// How attention is divided.
    pub division: Division,
    /// Said in the table, beside what is measured.
    pub name: &'static str,
}

/// Prints the lines of the results' page.
///
/// # Errors
/// What failed, in one line.
pub fn model_bench(run: ModelRun, size: &Size, ceilings: Ceilings) -> Result<(), String> {
    let config = &size.config;
    let largest = size.batches.iter().copied().max().unwrap_or(1);
    let blocks = (largest * blocks_each(size)).max(size.prompt.div_ceil(BLOCK));
    let token_bytes = config.layer_count * 2 * config.kv_head_count * config.head_size * 2;
    let options = CudaOptions {
        kv_memory: KvMemory::Bytes((blocks * BLOCK * token_bytes) as u64),
        block_size: BLOCK,
        division: run.division,
        rows_max: size.prompt.max(size.context),
        graphs: true,
    };
    let mut next = 0;
    let weights = |device: &dyn Device| DeviceWeights::made_of(config, &mut |bytes| filled(device, bytes, &mut next));
    let backend = CudaBackend::of_weights(run.engine, run.transfers, config.clone(), weights, options);
    let mut backend = backend.map_err(text)?;
    let weight_bytes = backend.weight_bytes_per_step();
    for batch in size.batches.iter().copied() {
        let seconds = decode(&mut backend, size, batch).map_err(text)?;
        let bytes = (weight_bytes + batch * size.context * token_bytes) as f64;
        println!(
            "| decode step, {batch} of {} context{} | {:.3} | {:.0} | {:.0} % |",
            size.context,
            run.name,
            seconds * 1e3,
            batch as f64 / seconds,
            bytes / ceilings.copy / seconds * 100.0
        );
    }
    let seconds = prefill(&mut backend, size).map_err(text)?;
    let queries = config.head_count * config.head_size;
    let (layers, _) = backend.weight_macs();
    let seen = config.layer_count * size.prompt * queries;
    let operations = (2 * size.prompt * (layers.pairs + seen)) as f64;
    println!(
        "| prefill of {} tokens{} | {:.1} | {:.0} | {:.0} % |",
        size.prompt,
        run.name,
        seconds * 1e3,
        size.prompt as f64 / seconds,
        operations / ceilings.product / seconds * 100.0
    );
    Ok(())
}

/// What the lines of [`model_bench`] stand under.
pub fn model_bench_head() {
    println!("\n| whole model | ms | tokens/s | of the ceiling |\n|---|---|---|---|");
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Blocks of a decoding sequence.
fn blocks_each(size: &Size) -> usize {
    (size.context + size.steps + size.warm_up + 2).div_ceil(BLOCK)
}

/// Numbers of about a normal distribution, small enough for sums of thousands of them; no two buffers begin alike.
fn filled(device: &dyn Device, bytes: usize, next: &mut u32) -> Result<Buffer, DeviceError> {
    *next += 1;
    let mut random = crate::suite::Random::new(u64::from(*next));
    let noise: Vec<u8> = random
        .rounded((bytes / 2).clamp(1, 1 << 16), 0.03)
        .iter()
        .flat_map(|x| x.to_ne_bytes())
        .collect();
    let buffer = device.allocate(bytes)?;
    let repeated: Vec<u8> = noise.iter().copied().cycle().take(bytes.min(REPEATED)).collect();
    for offset in (0..bytes).step_by(repeated.len().max(1)) {
        let count = repeated.len().min(bytes - offset);
        device.write(&buffer, offset, &repeated[..count])?;
    }
    Ok(buffer)
}

/// Seconds of a step, a step always in flight.
fn decode(backend: &mut CudaBackend, size: &Size, batch: usize) -> Result<f64, StepError> {
    let each = blocks_each(size);
    let tables: Vec<Vec<u32>> = (0..batch)
        .map(|i| (i * each..(i + 1) * each).map(|block| block as u32).collect())
        .collect();
    // The KV that decode reads has to be written: once computed, and copied to the others.
    prompt(backend, size.context, &tables[0])?;
    for table in &tables[1..] {
        backend.place(Relocation {
            source_blocks: &tables[0],
            source_start: 0,
            target_blocks: table,
            target_start: 0,
            token_count: size.context,
            position_shift: 0,
        })?;
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
    for step in 1..size.warm_up + size.steps {
        launch(backend, step)?;
        backend.collect(&mut |_| {})?;
        backend.read(&readings)?;
        if step == size.warm_up {
            began = Instant::now();
        }
    }
    backend.collect(&mut |_| {})?;
    Ok(began.elapsed().as_secs_f64() / (size.steps - 1) as f64)
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
fn prefill(backend: &mut CudaBackend, size: &Size) -> Result<f64, StepError> {
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
