//! Each kernel's bytes and operations over its time, beside a device copy and a large product of the same run.

use super::shapes::{HEAD_SIZE, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, POOL, QKV, VOCAB};
use crate::suite::Random;
use kvasir_cuda::driver::CudaDevice;
use kvasir_cuda::ops::{self, Activation, Copy, Gemm, GemmShape, KvPiece, RmsNorm, RotateAndStore, SampleRow};
use kvasir_cuda::{
    Attend, Buffer, Device, DeviceError, DeviceKv, DeviceRows, Division, StepRows, attend, partial_bytes,
};
use kvasir_kernels::{PoolError, RemoteKv, Span};
use std::sync::Arc;
use std::time::Instant;

/// Timed runs of each measurement, of which the median counts, after three that warm up.
const RUNS: usize = 15;

/// Prints the table of `docs/results/gpu.md` on stdout. The ceilings: bytes a second of a copy, operations a second of a product.
///
/// # Errors
/// What failed, with the kernel's name.
pub fn bench(device: &CudaDevice) -> Result<[f64; 2], String> {
    Bench::new(device)
        .and_then(|mut bench| bench.run().map(|()| [bench.copy_rate, bench.product_rate]))
        .map_err(|error| error.to_string())
}

struct Bench<'d> {
    device: &'d CudaDevice,
    /// Random bf16 that large buffers are filled with: zeros run faster than numbers do.
    noise: Buffer,
    copy_rate: f64,
    product_rate: f64,
}

/// What a kernel has to move and to compute.
#[derive(Clone, Copy, Default)]
struct Work {
    bytes: f64,
    operations: f64,
}

impl<'d> Bench<'d> {
    fn new(device: &'d CudaDevice) -> Result<Self, DeviceError> {
        let mut random = Random::new(11);
        let noise: Vec<u8> = random
            .rounded(1 << 21, 0.5)
            .iter()
            .flat_map(|x| x.to_ne_bytes())
            .collect();
        let buffer = device.allocate(noise.len())?;
        device.write(&buffer, 0, &noise)?;
        Ok(Self {
            device,
            noise: buffer,
            copy_rate: 0.0,
            product_rate: 0.0,
        })
    }

    fn run(&mut self) -> Result<(), DeviceError> {
        println!(
            "- device: {} ({} multiprocessors)",
            self.device.description(),
            self.device.multiprocessors()?
        );
        self.ceilings()?;
        println!("\n| kernel | shape | µs | GB/s | TFLOP/s | of the ceiling |\n|---|---|---|---|---|---|");
        for rows in [1, 64, 8192] {
            self.row_kernels(rows)?;
        }
        let mut step = Vec::new();
        for batch in [1, 64] {
            let products = self.products(batch)?;
            let attention = self.decode(batch, 4096, 0)?;
            step.push((batch, products, attention));
        }
        self.decode(64, 4096, 2048)?;
        self.products(8192)?;
        self.prompt(8192)?;
        self.sampling(64)?;
        self.transfer()?;
        println!();
        for (batch, products, attention) in step {
            let milliseconds = (products.0 + attention.0) * LAYERS as f64;
            let floor = (products.1 + attention.1) * LAYERS as f64 / self.copy_rate * 1e3;
            println!(
                "- products and attention of {LAYERS} layers, batch {batch}, 4k context: {milliseconds:.2} ms; at the copy's rate {floor:.2} ms ({:.0} %)",
                floor / milliseconds * 100.0
            );
        }
        Ok(())
    }

    fn ceilings(&mut self) -> Result<(), DeviceError> {
        let bytes = 2 << 30;
        let (from, to) = (self.filled(bytes)?, self.device.allocate(bytes)?);
        let copy = self.median(|| self.device.copy(&from, &to, bytes))?;
        self.copy_rate = 2.0 * bytes as f64 / copy * 1e3;
        let n = 8192;
        let (x, weights, out) = (
            self.filled(n * n * 2)?,
            self.filled(n * n * 2)?,
            self.device.allocate(n * n * 2)?,
        );
        let op = product([&x, &weights, &out], [n, n, n], false);
        let milliseconds = self.median(|| self.device.product(&op))?;
        self.product_rate = 2.0 * (n as f64).powi(3) / milliseconds * 1e3;
        println!(
            "- device copy of 2 GiB: {:.0} GB/s read and written",
            self.copy_rate / 1e9
        );
        println!(
            "- product of 8192 x 8192 x 8192 in bf16: {:.0} TFLOP/s",
            self.product_rate / 1e12
        );
        Ok(())
    }

    /// Memory full of random numbers.
    fn filled(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        let buffer = self.device.allocate(bytes)?;
        for offset in (0..bytes).step_by(self.noise.byte_len()) {
            let count = self.noise.byte_len().min(bytes - offset);
            self.device.copy(&self.noise, &buffer.part(offset, count)?, count)?;
        }
        Ok(buffer)
    }

    fn median(&self, mut work: impl FnMut() -> Result<(), DeviceError>) -> Result<f64, DeviceError> {
        (0..3).try_for_each(|_| work())?;
        // Small work is repeated within one measurement, so that its launches follow each other without a gap.
        let once = self.device.milliseconds(&mut work)?;
        let repeats = ((1.0 / once.max(1e-3)) as usize).clamp(1, 50);
        let mut times = (0..RUNS)
            .map(|_| self.device.milliseconds(|| (0..repeats).try_for_each(|_| work())))
            .collect::<Result<Vec<f64>, _>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[RUNS / 2] / repeats as f64)
    }

    /// Times work and prints its line; milliseconds.
    fn line(
        &self,
        name: &str,
        shape: &str,
        work: Work,
        run: impl FnMut() -> Result<(), DeviceError>,
    ) -> Result<f64, DeviceError> {
        let milliseconds = self.median(run)?;
        let (bytes, operations) = (work.bytes / milliseconds * 1e3, work.operations / milliseconds * 1e3);
        let floor = (work.bytes / self.copy_rate).max(work.operations / self.product_rate) * 1e3;
        println!(
            "| {name} | {shape} | {:.1} | {:.0} | {:.1} | {:.0} % |",
            milliseconds * 1e3,
            bytes / 1e9,
            operations / 1e12,
            floor / milliseconds * 100.0
        );
        Ok(milliseconds)
    }

    fn row_kernels(&self, rows: usize) -> Result<(), DeviceError> {
        let shape = format!("{rows} rows");
        let n = rows * HIDDEN;
        let (hidden, delta, out) = (self.filled(n * 4)?, self.filled(n * 4)?, self.device.allocate(n * 2)?);
        let weight = self.filled(HIDDEN * 4)?;
        let bytes = |bytes: usize| Work {
            bytes: bytes as f64,
            operations: 0.0,
        };
        self.line("rmsnorm + residual", &shape, bytes(n * 14), || {
            let op = RmsNorm {
                hidden: &hidden,
                delta: Some(&delta),
                bias: None,
                weight: &weight,
                out: &out,
                row_index: None,
                rows,
                width: HIDDEN,
                eps: 1e-5,
            };
            ops::rmsnorm(self.device, op)
        })?;
        let (gate_up, gated) = (
            self.filled(rows * INTERMEDIATE * 4)?,
            self.device.allocate(rows * INTERMEDIATE * 2)?,
        );
        self.line("gated", &shape, bytes(rows * INTERMEDIATE * 6), || {
            ops::gated(self.device, &gate_up, &gated, [rows, INTERMEDIATE], Activation::Silu)
        })?;
        let (qkv, table) = (self.filled(rows * QKV * 4)?, self.filled(rows * HEAD_SIZE * 4)?);
        let slots: Vec<u8> = (0..rows as u32).flat_map(u32::to_ne_bytes).collect();
        let (places, query) = (
            self.uploaded(&slots)?,
            self.device.allocate(rows * HEADS * HEAD_SIZE * 2)?,
        );
        let pool = self
            .device
            .allocate(rows.div_ceil(POOL.block_size) * POOL.block_bytes())?;
        self.line(
            "rotate_and_store",
            &shape,
            bytes(rows * (QKV * 6 + HEAD_SIZE * 4)),
            || {
                let op = RotateAndStore {
                    qkv: &qkv,
                    table: &table,
                    norms: None,
                    slots: &places,
                    query: &query,
                    pool: &pool,
                    shape: POOL,
                    layer: 0,
                    head_count: HEADS,
                    rows,
                    half: HEAD_SIZE / 2,
                    eps: 1e-5,
                };
                ops::rotate_and_store(self.device, op)
            },
        )?;
        Ok(())
    }

    fn uploaded(&self, bytes: &[u8]) -> Result<Buffer, DeviceError> {
        let buffer = self.device.allocate(bytes.len())?;
        self.device.write(&buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// The four products of a layer; milliseconds and bytes.
    fn products(&self, rows: usize) -> Result<(f64, f64), DeviceError> {
        let (mut milliseconds, mut bytes) = (0.0, 0.0);
        for (name, cols, inner, is_f32) in [
            ("qkv", QKV, HIDDEN, true),
            ("attention output", HIDDEN, HEADS * HEAD_SIZE, true),
            ("gate, up", 2 * INTERMEDIATE, HIDDEN, false),
            ("down", HIDDEN, INTERMEDIATE, true),
        ] {
            let out_bytes = if is_f32 { 4 } else { 2 };
            let (x, out) = (
                self.filled(rows * inner * 2)?,
                self.device.allocate(rows * cols * out_bytes)?,
            );
            // Four sets of weights in turn: one would stay in the L2.
            let weights: Vec<Buffer> = (0..4)
                .map(|_| self.filled(cols * inner * 2))
                .collect::<Result<_, _>>()?;
            let work = Work {
                bytes: (cols * inner * 2 + rows * (inner * 2 + cols * out_bytes)) as f64,
                operations: 2.0 * (rows * cols * inner) as f64,
            };
            let shape = format!("{rows} x {cols} x {inner}");
            let mut turn = 0;
            let mut next = || {
                turn += 1;
                product([&x, &weights[turn % 4], &out], [rows, cols, inner], is_f32)
            };
            milliseconds += self.line(&format!("product: {name}"), &shape, work, || {
                self.device.product(&next())
            })?;
            bytes += work.bytes;
            if name == "down" {
                let own = GemmShape::for_rows(rows);
                self.line(&format!("own product: {name}"), &shape, work, || {
                    ops::gemm(self.device, &next(), own)
                })?;
            }
        }
        Ok((milliseconds, bytes))
    }

    /// Decode attention of one layer; milliseconds and bytes.
    fn decode(&self, batch: usize, context: usize, shared: usize) -> Result<(f64, f64), DeviceError> {
        let (of_shared, blocks) = (shared / POOL.block_size, context / POOL.block_size);
        let tables: Vec<Vec<u32>> = (0..batch)
            .map(|i| {
                let own = of_shared + i * (blocks - of_shared);
                (0..of_shared)
                    .chain(own..own + blocks - of_shared)
                    .map(|block| block as u32)
                    .collect()
            })
            .collect();
        let spans: Vec<Span<'_>> = tables
            .iter()
            .map(|blocks| Span {
                start_position: context - 1,
                token_count: 1,
                blocks,
            })
            .collect();
        let tokens = shared + batch * (context - shared);
        let work = Work {
            bytes: (tokens * KV_HEADS * HEAD_SIZE * 4) as f64,
            operations: 4.0 * (batch * context * HEADS * HEAD_SIZE) as f64,
        };
        let name = if shared == 0 {
            "attention, decode"
        } else {
            "attention, decode, shared prefix"
        };
        let shape = match shared {
            0 => format!("{batch} of {context}"),
            shared => format!("{batch} of {context}, {shared} shared"),
        };
        let milliseconds = self.attention(name, &shape, work, &spans, tokens)?;
        Ok((milliseconds, work.bytes))
    }

    fn prompt(&self, length: usize) -> Result<(), DeviceError> {
        let blocks: Vec<u32> = (0..(length / POOL.block_size) as u32).collect();
        let span = Span {
            start_position: 0,
            token_count: length,
            blocks: &blocks,
        };
        let work = Work {
            bytes: (length * (KV_HEADS * HEAD_SIZE * 4 + HEADS * HEAD_SIZE * 4)) as f64,
            // Half of the square is seen.
            operations: 2.0 * (length * length * HEADS * HEAD_SIZE) as f64,
        };
        self.attention("attention, prompt", &format!("{length}"), work, &[span], length)?;
        Ok(())
    }

    fn attention(
        &self,
        name: &str,
        shape: &str,
        work: Work,
        spans: &[Span<'_>],
        tokens: usize,
    ) -> Result<f64, DeviceError> {
        let division = Division::FAST;
        let plan = StepRows::new(spans, POOL.block_size, HEADS / KV_HEADS, division);
        let memory = self.device.allocate(4 * DeviceRows::words(&plan, &[]))?;
        let rows = DeviceRows::upload(self.device, &memory, &plan, &[])?;
        let pool = self.filled(tokens.div_ceil(POOL.block_size) * POOL.block_bytes())?;
        let bytes = plan.positions.len() * HEADS * HEAD_SIZE * 2;
        let (query, out) = (self.filled(bytes)?, self.device.allocate(bytes)?);
        let [sums, stats] = partial_bytes(&plan, HEADS, HEAD_SIZE);
        let partials = [self.device.allocate(sums)?, self.device.allocate(stats)?];
        self.line(name, shape, work, || {
            let op = Attend {
                query: &query,
                pool: &pool,
                out: &out,
                partials: Some([&partials[0], &partials[1]]),
                shape: POOL,
                layer: 0,
                head_count: HEADS,
                partition: division.partition,
            };
            attend(self.device, &plan, &rows, &op)
        })
    }

    fn sampling(&self, rows: usize) -> Result<(), DeviceError> {
        let mut random = Random::new(5);
        let logits: Vec<u8> = random
            .normals(rows * VOCAB, 3.0)
            .iter()
            .flat_map(|x| x.to_ne_bytes())
            .collect();
        let (logits, tokens) = (self.uploaded(&logits)?, self.device.allocate(rows * 4)?);
        for (name, top_k, top_p) in [("sample", 0, 1.0), ("sample, top-k, top-p", 50, 0.9)] {
            let row = |row: u32| SampleRow {
                seed: 7,
                index: u64::from(row),
                row,
                temperature: 1.0,
                top_k,
                top_p,
                min_p: 0.0,
                typical_p: 0.0,
            };
            let chosen: Vec<SampleRow> = (0..rows as u32).map(row).collect();
            let rows_bytes: Vec<u8> = chosen.iter().flat_map(SampleRow::to_bytes).collect();
            let list = self.uploaded(&rows_bytes)?;
            let work = Work {
                bytes: (rows * VOCAB * 4) as f64,
                operations: 0.0,
            };
            self.line(name, &format!("{rows} rows"), work, || {
                ops::sample(self.device, [&logits, &list, &tokens], &chosen, VOCAB)
            })?;
        }
        Ok(())
    }

    fn transfer(&self) -> Result<(), DeviceError> {
        let blocks = 2048;
        let bytes = blocks * POOL.block_bytes();
        let (pool, packed) = (self.filled(bytes)?, self.device.allocate(bytes)?);
        let piece = |block: usize| KvPiece {
            packed: (block * POOL.block_bytes() / 2) as u64,
            block: ((block * 37) % blocks) as u32,
            token_begin: 0,
            token_count: POOL.block_size as u32,
            layer_begin: 0,
            layer_count: 1,
            head_begin: 0,
            head_count: KV_HEADS as u32,
        };
        let list: Vec<u8> = (0..blocks).flat_map(|block| piece(block).to_bytes(&POOL)).collect();
        let list = self.uploaded(&list)?;
        let work = Work {
            bytes: 2.0 * bytes as f64,
            operations: 0.0,
        };
        for (name, copy) in [("kv gather", Copy::Gather), ("kv scatter", Copy::Scatter)] {
            self.line(name, &format!("{blocks} blocks"), work, || {
                ops::kv_copy(self.device, copy, [&pool, &packed, &list], &POOL, blocks, 1)
            })?;
        }
        self.to_and_from_the_host(&pool, blocks)
    }
}

impl Bench<'_> {
    /// Blocks of a pool to this machine's memory and back, as transfers and swaps move them, beside plain copies of as many bytes.
    fn to_and_from_the_host(&self, pool: &Buffer, blocks: usize) -> Result<(), DeviceError> {
        let mut bytes = vec![0; blocks * POOL.block_bytes()];
        let rate = |seconds: f64| (blocks * POOL.block_bytes()) as f64 / seconds / 1e9;
        let timed = |work: &mut dyn FnMut() -> Result<(), DeviceError>| {
            work()?;
            let began = Instant::now();
            work().map(|()| began.elapsed().as_secs_f64())
        };
        let down = timed(&mut || self.device.read(pool, 0, &mut bytes))?;
        let up = timed(&mut || {
            self.device.write(pool, 0, &bytes)?;
            self.device.synchronize()
        })?;
        let kv = DeviceKv::new(Arc::new(self.device.beside()?), pool.clone(), POOL)?;
        let ranges = || [0..POOL.block_size as u32, 0..1, 0..KV_HEADS as u32];
        let failed = |error: PoolError| DeviceError::Failed(error.to_string());
        let mut one = Vec::new();
        let gathered = timed(&mut || {
            (0..blocks as u32).try_for_each(|block| {
                one.clear();
                kv.gather(block, ranges(), POOL.block_bytes(), &mut one).map_err(failed)
            })
        })?;
        let scattered =
            timed(&mut || (0..blocks as u32).try_for_each(|block| kv.scatter(block, ranges(), &one).map_err(failed)))?;
        println!(
            "\n- device to host: {:.1} GB/s copied, {:.1} GB/s gathered block by block; host to device: {:.1} GB/s copied, {:.1} GB/s scattered ({} KiB a block)",
            rate(down),
            rate(gathered),
            rate(up),
            rate(scattered),
            POOL.block_bytes() >> 10,
        );
        Ok(())
    }
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
