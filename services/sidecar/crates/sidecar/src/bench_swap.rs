//! `kvasir-sidecar bench-swap`: how fast blocks of a CPU's pool go to host slots and back, beside a plain copy of as many bytes.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use kvasir_engine::{KvShards, SwapDirection, SwapSpace};
use kvasir_kernels::AlignedBytes;

use crate::bench_pull::SHAPE;
use crate::cli::bytes;
use crate::serve::Fatal;
use crate::swapping::{Copied, copy_blocks};

/// What to swap.
#[derive(Debug, Clone, Args)]
pub struct BenchSwapFlags {
    /// KV to swap; it takes four times as much memory
    #[arg(long, default_value = "256MiB", value_parser = bytes)]
    bytes: u64,
    /// Rounds after one that warms up, in each of which everything is copied once
    #[arg(long, default_value_t = 9)]
    rounds: usize,
}

/// How blocks lie to each other.
const RUN: &str = "run";
/// No two that follow each other go to slots that do.
const APART: &str = "apart";

/// Measures and prints JSON: GB/s of each round by name.
///
/// # Errors
/// When there is no memory.
pub fn run(flags: &BenchSwapFlags) -> Result<(), Fatal> {
    let block_bytes = SHAPE.bytes_per_token() * SHAPE.block_size;
    let pool = Arc::new(KvShards::new(SHAPE, 1, flags.bytes.max(2 * block_bytes as u64))?);
    let blocks = pool.block_count();
    let length = blocks as usize * block_bytes;
    let space = SwapSpace::new(Arc::clone(&pool), length as u64)?;
    // Of large pages, as pool and slots are.
    let (mut from, mut to) = (AlignedBytes::zeroed(length), AlignedBytes::zeroed(length));
    from.bytes_mut().fill(1);
    for block in 0..blocks {
        let data = &from.bytes()[..block_bytes];
        let heads = 0..SHAPE.kv_head_count as u32;
        pool.shards()[0].scatter(
            block,
            0..SHAPE.block_size as u32,
            0..SHAPE.layer_count as u32,
            heads,
            data,
        )?;
    }
    let orders = [(RUN, 1), (APART, 2)].map(|(name, step)| {
        let order = (0..step).flat_map(move |first| (first..blocks).step_by(step as usize));
        (name, order.zip(0..).collect::<Vec<(u32, u32)>>())
    });
    let rate = |began: Instant| length as f64 / began.elapsed().as_secs_f64() / 1e9;
    let mut rounds = Vec::new();
    for _ in 0..=flags.rounds {
        let mut round = serde_json::Map::new();
        let began = Instant::now();
        to.bytes_mut().copy_from_slice(std::hint::black_box(from.bytes()));
        std::hint::black_box(to.bytes());
        round.insert("memcpy".into(), rate(began).into());
        for (name, pairs) in &orders {
            for (way, direction) in [("out", SwapDirection::Out), ("in", SwapDirection::In)] {
                let began = Instant::now();
                copy_blocks(&space, direction, pairs.iter().copied(), &mut Copied::default(), || {
                    Ok(())
                })?;
                round.insert(format!("{way}_{name}"), rate(began).into());
            }
        }
        rounds.push(round);
    }
    rounds.remove(0);
    let report = serde_json::json!({"block_bytes": block_bytes, "blocks": blocks, "gb_per_s": rounds});
    println!("{report}");
    Ok(())
}
