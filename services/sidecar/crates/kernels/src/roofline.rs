//! What this machine can do at most, measured with the instructions that the kernels use: the yardstick beside a kernel's own speed.

use crate::aligned::{AlignedBytes, as_f32};
use crate::cpu::Cpu;
use crate::isa::Kernel;
use crate::simd::{LANES, Simd, unroll};
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// Bytes read: far beyond the last-level cache that a guest sees, and most that it does not see.
const STREAM_BYTES: usize = 512 << 20;
/// Bytes of one task of the reading.
const STREAM_TASK: usize = 2 << 20;
/// Independent sums: enough to cover the latency of a multiply-add on two ports.
const CHAINS: usize = 8;
/// Multiply-adds of each chain in one task: about a millisecond.
const CHAIN_STEPS: usize = 300_000;
/// Measurements, of which the best counts: others on the machine only ever make it look slower.
const REPETITIONS: usize = 5;

/// Upper bounds for all threads of a device together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofline {
    /// Reading memory front to back, adding what was read.
    pub read_bytes_per_second: f64,
    /// Multiply-adds of f32 between registers: what dense weights and attention are made of.
    pub f32_macs_per_second: f64,
    /// Multiply-adds of pairs of bf16 between registers: what weights kept as such pairs are made of.
    pub bf16_macs_per_second: f64,
    /// Multiply-adds of 8-bit integers between registers: what quantised weights are made of.
    pub int8_macs_per_second: f64,
}

impl Roofline {
    /// Measures for about half a second; takes 512 MiB for as long.
    pub fn measure(cpu: &Cpu) -> Self {
        let mut stream = AlignedBytes::zeroed(STREAM_BYTES);
        // Written once: pages that were never written are all the same page of zeros.
        stream.bytes_mut().fill(1);
        let tasks: Vec<&[f32]> = stream.bytes().chunks_exact(STREAM_TASK).map(as_f32).collect();
        let reading = best_seconds(cpu, tasks.len(), |task| cpu.isa.run(Read(tasks[task])));
        let compute_tasks = cpu.threads.threads() * 8;
        let f32_seconds = best_seconds(cpu, compute_tasks, |_| cpu.isa.run(MultiplyF32));
        let bf16_seconds = best_seconds(cpu, compute_tasks, |_| cpu.isa.run_bf16(MultiplyBf16));
        let int8_seconds = best_seconds(cpu, compute_tasks, |_| cpu.isa.run(MultiplyInt8));
        let lanes = (compute_tasks * CHAINS * CHAIN_STEPS * LANES) as f64;
        Self {
            read_bytes_per_second: STREAM_BYTES as f64 / reading,
            f32_macs_per_second: lanes / f32_seconds,
            bf16_macs_per_second: lanes * 2.0 / bf16_seconds,
            int8_macs_per_second: lanes * 4.0 / int8_seconds,
        }
    }
}

/// Fastest of [`REPETITIONS`] runs of all tasks, after one that warms up.
fn best_seconds(cpu: &Cpu, tasks: usize, task: impl Fn(usize) -> f32 + Sync) -> f64 {
    let sink = AtomicU32::new(0);
    let mut best = f64::INFINITY;
    for repetition in 0..=REPETITIONS {
        let started = Instant::now();
        cpu.threads.run(tasks, &|index| {
            sink.fetch_xor(task(index).to_bits(), Ordering::Relaxed);
        });
        if repetition > 0 {
            best = best.min(started.elapsed().as_secs_f64());
        }
    }
    black_box(sink.into_inner());
    best
}

struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); CHAINS];
        let (lines, _) = self.0.as_chunks::<LANES>();
        for lines in lines.as_chunks::<CHAINS>().0 {
            unroll!(i < CHAINS, {
                sums[i] = s.add(sums[i], s.load(&lines[i]));
            });
        }
        total(s, sums)
    }
}

struct MultiplyF32;

impl Kernel for MultiplyF32 {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(1.0)));
        let mut sums = [s.splat(0.0); CHAINS];
        for _ in 0..CHAIN_STEPS {
            unroll!(i < CHAINS, {
                sums[i] = s.fma(sums[i], a, b);
            });
        }
        total(s, sums)
    }
}

struct MultiplyBf16;

impl Kernel for MultiplyBf16 {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let weights = s.load_pairs(black_box(&[0x3f00; 2 * LANES]));
        let pair = black_box(0x3f00_3f80);
        let mut sums = [s.splat(0.0); CHAINS];
        for _ in 0..CHAIN_STEPS {
            unroll!(i < CHAINS, {
                sums[i] = s.dot_bf16(sums[i], weights, pair);
            });
        }
        total(s, sums)
    }
}

struct MultiplyInt8;

impl Kernel for MultiplyInt8 {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let weights = s.unpack_u4(black_box(&[0x21; 256]));
        let mut sums = [s.zero_i32(); CHAINS];
        let quad = black_box(0x0102_0301);
        for _ in 0..CHAIN_STEPS {
            unroll!(i < CHAINS, {
                sums[i] = s.dot_quad(sums[i], weights[i], quad);
            });
        }
        total(s, sums.map(|sum| s.f32_from_i32(sum)))
    }
}

#[inline(always)]
fn total<S: Simd>(s: S, sums: [S::F; CHAINS]) -> f32 {
    let mut total = 0.0;
    unroll!(i < CHAINS, {
        total += s.reduce_sum(sums[i]);
    });
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    #[test]
    fn figures_are_finite_and_above_what_the_slowest_vector_processor_does() {
        let all = Isa::available().into_iter().filter(|isa| isa.name() != "portable");
        for isa in all {
            let roofline = Roofline::measure(&Cpu::with_isa(isa, 1).unwrap());
            assert!(roofline.read_bytes_per_second.is_finite() && roofline.read_bytes_per_second > 1e8);
            // Eight lanes at a gigahertz are what the slowest processor with AVX2 does.
            assert!(roofline.f32_macs_per_second.is_finite() && roofline.f32_macs_per_second > 1e9);
            assert!(roofline.bf16_macs_per_second.is_finite() && roofline.bf16_macs_per_second > 1e9);
            assert!(roofline.int8_macs_per_second.is_finite() && roofline.int8_macs_per_second > 1e9);
        }
    }
}
