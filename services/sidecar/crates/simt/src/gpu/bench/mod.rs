//! Each kernel's bytes and operations over its time, beside a device copy and a large product of the same run.

mod attention;
mod codec;
mod moves;
mod products;
mod rows;
mod tokens;

use super::clocked::Clocked;
use super::size::Size;
use crate::suite::Random;
use kvasir_cuda::ops::Gemm;
use kvasir_cuda::{Buffer, DeviceError};

/// The ceilings of a device.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    /// Bytes a second of a copy, read and written.
    pub copy: f64,
    /// Operations a second of a large product.
    pub product: f64,
}

/// Prints the table of `docs/results/gpu.md` on stdout.
///
/// # Errors
/// What failed, with the kernel's name.
pub fn bench(device: &dyn Clocked, size: &Size) -> Result<Ceilings, String> {
    let run = || {
        let bench = Bench::new(device, size)?;
        bench.run().map(|()| bench.ceilings)
    };
    run().map_err(|error: DeviceError| error.to_string())
}

struct Bench<'d> {
    device: &'d dyn Clocked,
    size: &'d Size,
    /// Random bf16 that large buffers are filled with: zeros run faster than numbers do.
    noise: Buffer,
    ceilings: Ceilings,
}

/// What a kernel has to move and to compute.
#[derive(Clone, Copy, Default)]
struct Work {
    bytes: f64,
    operations: f64,
}

impl Work {
    fn bytes(bytes: usize) -> Self {
        Self {
            bytes: bytes as f64,
            operations: 0.0,
        }
    }
}

impl<'d> Bench<'d> {
    /// Measures the ceilings.
    fn new(device: &'d dyn Clocked, size: &'d Size) -> Result<Self, DeviceError> {
        let count = (size.copied / 2).min(1 << 21);
        let noise: Vec<u8> = Random::new(11)
            .rounded(count, 0.5)
            .iter()
            .flat_map(|x| x.to_ne_bytes())
            .collect();
        let buffer = device.allocate(noise.len())?;
        device.write(&buffer, 0, &noise)?;
        let mut bench = Self {
            device,
            size,
            noise: buffer,
            ceilings: Ceilings {
                copy: 0.0,
                product: 0.0,
            },
        };
        bench.ceilings = bench.measure_ceilings()?;
        Ok(bench)
    }

    fn run(&self) -> Result<(), DeviceError> {
        println!("\n| kernel | shape | µs | GB/s | TFLOP/s | of the ceiling |\n|---|---|---|---|---|---|");
        for rows in self.size.rows.iter().copied() {
            self.row_kernels(rows)?;
        }
        let mut step = Vec::new();
        for batch in self.size.batches.iter().copied() {
            step.push((batch, self.products(batch)?, self.decode(batch, 0)?));
        }
        let largest = self.size.batches.iter().copied().max().unwrap_or(1);
        self.decode(largest, self.size.shared)?;
        self.products(self.size.prompt)?;
        self.prompt(self.size.prompt)?;
        self.tokens(largest)?;
        self.moves()?;
        self.codec()?;
        println!();
        let (layers, context) = (self.size.config.layer_count, self.size.context);
        for (batch, products, attention) in step {
            let milliseconds = (products.milliseconds + attention.milliseconds) * layers as f64;
            let floor = (products.bytes + attention.bytes) * layers as f64 / self.ceilings.copy * 1e3;
            println!(
                "- products and attention of {layers} layers, batch {batch}, context {context}: {milliseconds:.2} ms; at the copy's rate {floor:.2} ms ({:.0} %)",
                floor / milliseconds * 100.0
            );
        }
        self.to_and_from_the_host()
    }

    fn measure_ceilings(&self) -> Result<Ceilings, DeviceError> {
        let bytes = self.size.copied;
        let (from, to) = (self.filled(bytes)?, self.device.allocate(bytes)?);
        let milliseconds = self.median(&mut || self.device.duplicate(&from, &to, bytes))?;
        let copy = 2.0 * bytes as f64 / milliseconds * 1e3;
        let n = self.size.multiplied;
        let (x, weights) = (self.filled(n * n * 2)?, self.filled(n * n * 2)?);
        let out = self.device.allocate(n * n * 2)?;
        let op = product([&x, &weights, &out], [n, n, n], false);
        let milliseconds = self.median(&mut || self.device.product(&op))?;
        let product = 2.0 * (n as f64).powi(3) / milliseconds * 1e3;
        println!("- device: {}", self.device.description());
        println!(
            "- device copy of {} MiB: {:.0} GB/s read and written",
            bytes >> 20,
            copy / 1e9
        );
        println!("- product of {n} x {n} x {n} in bf16: {:.0} TFLOP/s", product / 1e12);
        Ok(Ceilings { copy, product })
    }

    /// Memory full of random numbers.
    fn filled(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        let buffer = self.device.allocate(bytes)?;
        for offset in (0..bytes).step_by(self.noise.byte_len()) {
            let count = self.noise.byte_len().min(bytes - offset);
            self.device
                .duplicate(&self.noise, &buffer.part(offset, count)?, count)?;
        }
        Ok(buffer)
    }

    fn uploaded(&self, bytes: &[u8]) -> Result<Buffer, DeviceError> {
        let buffer = self.device.allocate(bytes.len())?;
        self.device.write(&buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// Milliseconds.
    fn median(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<f64, DeviceError> {
        let runs = self.size.runs;
        (0..runs.min(3)).try_for_each(|_| work())?;
        // Small work is repeated within one measurement, so that its launches follow each other without a gap.
        let once = self.device.time(work)?;
        let repeats = ((1.0 / once.max(1e-3)) as usize).clamp(1, runs * 4);
        let mut times = (0..runs)
            .map(|_| self.device.time(&mut || (0..repeats).try_for_each(|_| work())))
            .collect::<Result<Vec<f64>, _>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[runs / 2] / repeats as f64)
    }

    /// Times work and prints its line; milliseconds.
    fn line(
        &self,
        name: &str,
        shape: &str,
        work: Work,
        mut run: impl FnMut() -> Result<(), DeviceError>,
    ) -> Result<f64, DeviceError> {
        let failed = |error| DeviceError::Failed(format!("{name}, {shape}: {error}"));
        let milliseconds = self.median(&mut run).map_err(failed)?;
        let (bytes, operations) = (work.bytes / milliseconds * 1e3, work.operations / milliseconds * 1e3);
        let floor = (work.bytes / self.ceilings.copy).max(work.operations / self.ceilings.product) * 1e3;
        println!(
            "| {name} | {shape} | {:.1} | {:.0} | {:.1} | {:.0} % |",
            milliseconds * 1e3,
            bytes / 1e9,
            operations / 1e12,
            floor / milliseconds * 100.0
        );
        Ok(milliseconds)
    }
}

/// What a part of a layer took, and the bytes that it had to move.
struct Taken {
    milliseconds: f64,
    bytes: f64,
}

fn product<'a>([x, weights, out]: [&'a Buffer; 3], [rows, cols, inner]: [usize; 3], is_f32: bool) -> Gemm<'a> {
    Gemm {
        x,
        weights,
        out,
        is_f32,
        rows,
        cols,
        inner,
    }
}

/// Words as the device has them.
fn bytes_of(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}
