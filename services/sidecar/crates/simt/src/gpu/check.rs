//! The conformance suite on a GPU, the products of cuBLASLt, and models beside the CPU engine.

use super::models;
use super::swaps::swaps;
use crate::suite::{CASES, Harness, Random};
use kvasir_cuda::Device;
use kvasir_cuda::driver::Products;
use kvasir_cuda::ops::Gemm;
use kvasir_sidecar::gpus::Gpus;
use std::path::{Path, PathBuf};

/// How much is checked.
#[derive(Debug, Clone)]
pub struct CheckSize {
    /// Seeds of each case.
    pub seeds: u64,
    /// Models beside the CPU engine: names of random ones, or folders.
    pub models: Vec<PathBuf>,
    /// Tokens that each says.
    pub tokens: u32,
    /// Whether the device finds reads of unwritten memory by itself.
    pub is_checked: bool,
}

/// Lines `ok` and `FAILED`, and how many failed.
pub(super) struct Report(usize);

impl Report {
    pub(super) fn add(&mut self, name: &str, result: Result<String, String>) {
        match result {
            Ok(remark) if remark.is_empty() => println!("ok      {name}"),
            Ok(remark) => println!("ok      {name}: {remark}"),
            Err(what) => {
                self.0 += 1;
                println!("FAILED  {name}: {what}");
            }
        }
    }

    fn end(self, device: &dyn Device) -> Result<(), String> {
        match self.0 {
            0 => Ok(()),
            count => Err(format!("{count} cases failed on {}", device.description())),
        }
    }
}

/// Runs every case of the suite with every seed, prints a line for each, and fails when one did.
///
/// # Errors
/// How many failed; all run first.
pub fn suite(gpus: &dyn Gpus, kernels: &Path, size: &CheckSize) -> Result<(), String> {
    let own = open(gpus, kernels, Products::Deterministic)?;
    println!("device: {}", own.description());
    let mut report = Report(0);
    cases(&*own, size, &mut report);
    report.end(&*own)
}

/// The suite, products, and models.
///
/// # Errors
/// How many failed; all run first.
pub fn check(gpus: &dyn Gpus, kernels: &Path, size: &CheckSize) -> Result<(), String> {
    let own = open(gpus, kernels, Products::Deterministic)?;
    let fastest = open(gpus, kernels, Products::Fastest)?;
    println!("device: {}", fastest.description());
    let mut report = Report(0);
    cases(&*own, size, &mut report);
    report.add("products, fastest beside own", products(&[&*own, &*fastest]));
    report.add("swaps to the host and back", swaps(&*own));
    for model in &size.models {
        models::check(gpus, kernels, model, size.tokens, &mut report)?;
    }
    report.end(&*fastest)
}

fn open(gpus: &dyn Gpus, kernels: &Path, products: Products) -> Result<std::sync::Arc<dyn Device>, String> {
    let gpu = gpus.open(0, kernels, products);
    gpu.map(|gpu| gpu.engine).map_err(|error| error.to_string())
}

fn cases(device: &dyn Device, size: &CheckSize, report: &mut Report) {
    for (name, case) in CASES {
        let run = |seed: u64| {
            let mut harness = match size.is_checked {
                true => Harness::checked(device, seed),
                false => Harness::poisoned(device, seed),
            };
            case(&mut harness).map_err(|what| format!("{what}; seed {seed}"))
        };
        report.add(name, (1..=size.seeds).try_for_each(run).map(|()| String::new()));
    }
}

fn products(devices: &[&dyn Device; 2]) -> Result<String, String> {
    let mut random = Random::new(1);
    let mut worst = 0.0_f32;
    for [rows, cols, inner] in [[1, 512, 512], [64, 384, 256], [300, 1000, 576]] {
        let (x, weights) = (random.rounded(rows * inner, 1.0), random.rounded(cols * inner, 1.0));
        let mut results = Vec::new();
        for device in devices {
            let h = Harness::poisoned(*device, 0);
            let out = h.output(rows * cols * 4)?;
            let op = Gemm {
                x: &h.bf16s(&x)?,
                weights: &h.bf16s(&weights)?,
                out: &out,
                is_f32: true,
                rows,
                cols,
                inner,
            };
            device.product(&op).map_err(|error| error.to_string())?;
            results.push(h.read_f32s(&out, rows * cols)?);
        }
        // Both sum products of bf16 in f32, in different orders; a sum of n normal numbers is about the root of n large.
        let tolerance = (inner as f32).sqrt() * inner as f32 * 2f32.powi(-22);
        for (at, (a, b)) in results[0].iter().zip(&results[1]).enumerate() {
            let difference = (a - b).abs();
            if difference.is_nan() || difference > tolerance {
                return Err(format!("[{rows}, {cols}, {inner}] element {at}: {a} and {b}"));
            }
            worst = worst.max(difference);
        }
    }
    Ok(format!("at most {worst:e} apart"))
}
