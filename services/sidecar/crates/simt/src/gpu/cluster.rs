//! Two sidecars on one GPU: a prompt's KV from one to the other while it is computed, the same KV pulled when it is there, and decode with a
//! step always in flight. The processes and calls are those of a cluster; what is missing is its TypeScript.

use super::sidecar_process::{Calls, SidecarProcess};
use kvasir_model::testing::TestModel;
use kvasir_sidecar::proto::kernel::{ExecuteRequest, FetchRequest, SequenceSlice, SequenceStart};
use kvasir_sidecar::proto::{common, kernel};
use std::path::Path;
use std::time::{Duration, Instant};

/// Tokens of a step, as a prefill worker's budget.
const CHUNK: u32 = 2048;

/// How large everything is.
#[derive(Debug, Clone)]
pub struct ClusterSize {
    /// Written to disk with random weights.
    pub model: TestModel,
    /// Prompt lengths.
    pub prompts: Vec<u32>,
    /// Sequences that decode together.
    pub batches: Vec<u32>,
    /// Their prompts.
    pub context: u32,
    /// Steps of each measurement of decode.
    pub steps: u32,
    /// Memory of a pool.
    pub kv_bytes: u64,
}

impl ClusterSize {
    /// 128 KB of KV a token, as Llama-3-8B's, under small matrices: what moves is measured, not what computes.
    pub fn large() -> Self {
        Self {
            model: TestModel {
                hidden: 512,
                intermediate: 1408,
                layers: 32,
                heads: 16,
                kv_heads: 8,
                head_size: 128,
                vocab: 8192,
                ..TestModel::default()
            },
            prompts: vec![512, 1024, 2000],
            batches: vec![1, 64],
            context: 512,
            steps: 64,
            kv_bytes: 6 << 30,
        }
    }

    /// As much as a simulation does in seconds.
    pub fn small() -> Self {
        Self {
            model: TestModel::default(),
            prompts: vec![40],
            batches: vec![1, 3],
            context: 20,
            steps: 3,
            kv_bytes: 1 << 20,
        }
    }
}

/// Prints the lines of the results' page.
///
/// # Errors
/// What failed, in one line.
pub fn cluster(sidecar: &Path, kernels: &Path, size: &ClusterSize) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(measure(sidecar, kernels, size))
}

async fn measure(binary: &Path, kernels: &Path, size: &ClusterSize) -> Result<(), String> {
    let folder = std::env::temp_dir().join(format!("kvasir-gpu-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    size.model
        .write_hugging_face(&folder)
        .map_err(|error| error.to_string())?;
    let measured = run(binary, kernels, size, &folder).await;
    let _ = std::fs::remove_dir_all(&folder);
    measured
}

async fn run(binary: &Path, kernels: &Path, size: &ClusterSize, model: &Path) -> Result<(), String> {
    let source = SidecarProcess::start(binary, kernels, model, size.kv_bytes, "source").await?;
    let sink = SidecarProcess::start(binary, kernels, model, size.kv_bytes, "sink").await?;
    let per_token = u64::from(source.about.kv_bytes_per_token);
    println!("- both sidecars on: {}", source.about.device);
    println!(
        "\n| prompt | KV, MB | prefill, ms | KV in place after the last step, ms | pulled when it is there, GB/s |\n|---|---|---|---|---|"
    );
    for (round, length) in size.prompts.iter().copied().enumerate() {
        let lease = 2 * round as u8 + 1;
        let blocks = blocks_of(&source, 0, length + 1);
        let (mut prefill, mut reports) = (
            source.execute().await?,
            fetch(&source, &sink, lease, length, &blocks, false).await?,
        );
        let began = Instant::now();
        prefill_all(&mut prefill, 1, length, &blocks, size.model.vocab as u32).await?;
        let computed = began.elapsed();
        reports.until(length).await?;
        let placed = began.elapsed();
        // Once more, now that nothing is left to compute.
        let mut reports = fetch(&source, &sink, lease + 1, length, &blocks, true).await?;
        let nanos = reports.until(length).await?;
        let bytes = per_token * u64::from(length);
        println!(
            "| {length} | {:.1} | {:.1} | {:.2} | {:.2} |",
            bytes as f64 / 1e6,
            milliseconds(computed),
            milliseconds(placed.saturating_sub(computed)),
            bytes as f64 / nanos.max(1) as f64,
        );
        drop(prefill);
        for lease in [lease, lease + 1] {
            source.release(lease).await?;
            sink.fence(lease).await?;
        }
    }
    println!("\n| sequences | context | tokens/s through the Execute stream |\n|---|---|---|");
    for batch in size.batches.iter().copied() {
        let rate = decode(&sink, size, batch).await?;
        println!("| {batch} | {} | {rate:.0} |", size.context);
    }
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Blocks for tokens, from a block on.
fn blocks_of(sidecar: &SidecarProcess, first: u32, tokens: u32) -> Vec<u32> {
    let size = sidecar.block_size();
    (first..first + tokens.div_ceil(size)).collect()
}

async fn fetch(
    source: &SidecarProcess,
    sink: &SidecarProcess,
    lease: u8,
    length: u32,
    blocks: &[u32],
    computed: bool,
) -> Result<super::sidecar_process::Reports, String> {
    let ticket = source.publish(lease, 1, length, blocks, computed).await?;
    sink.fetch(FetchRequest {
        lease_id: vec![lease; 16],
        ticket: Some(ticket),
        source: Some(source.source()),
        block_ids: blocks.to_vec(),
        token_begin: 0,
        token_end: length,
        tenant_scope: super::sidecar_process::SCOPE.to_vec(),
        ..FetchRequest::default()
    })
    .await
}

async fn prefill_all(calls: &mut Calls, id: u64, length: u32, blocks: &[u32], vocab: u32) -> Result<(), String> {
    for begin in (0..length).step_by(CHUNK as usize) {
        let end = length.min(begin + CHUNK);
        let starts = if begin == 0 {
            vec![start(id, length, blocks)]
        } else {
            Vec::new()
        };
        let slice = SequenceSlice {
            sequence_id: id,
            start_position: begin,
            token_count: end - begin,
            token_ids: (begin..end).map(|i| (i * 37 + id as u32 * 11) % vocab).collect(),
            appended_block_ids: Vec::new(),
            sample: end == length,
        };
        calls
            .send(ExecuteRequest {
                starts,
                slices: vec![slice],
                ..ExecuteRequest::default()
            })
            .await?;
        calls.answer().await?;
    }
    Ok(())
}

fn start(sequence_id: u64, prompt_token_count: u32, blocks: &[u32]) -> SequenceStart {
    SequenceStart {
        sequence_id,
        prompt_token_count,
        sampling: Some(common::SamplingParams {
            max_tokens: 100_000,
            ..common::SamplingParams::default()
        }),
        block_ids: blocks.to_vec(),
        ..SequenceStart::default()
    }
}

/// Tokens a second of a batch, a step always in flight.
async fn decode(sidecar: &SidecarProcess, size: &ClusterSize, batch: u32) -> Result<f64, String> {
    let mut calls = sidecar.execute().await?;
    let tokens = size.context + size.steps + 2;
    let each = tokens.div_ceil(sidecar.block_size());
    for id in 0..batch {
        let blocks = blocks_of(sidecar, id * each, tokens);
        prefill_all(
            &mut calls,
            u64::from(id),
            size.context,
            &blocks,
            size.model.vocab as u32,
        )
        .await?;
    }
    let step = |index: u32| ExecuteRequest {
        slices: (0..batch)
            .map(|id| SequenceSlice {
                sequence_id: u64::from(id),
                start_position: size.context + index,
                token_count: 1,
                sample: true,
                ..kernel::SequenceSlice::default()
            })
            .collect(),
        ..ExecuteRequest::default()
    };
    let began = Instant::now();
    calls.send(step(0)).await?;
    for index in 1..size.steps {
        calls.send(step(index)).await?;
        calls.answer().await?;
    }
    calls.answer().await?;
    Ok(f64::from(batch * size.steps) / began.elapsed().as_secs_f64())
}
