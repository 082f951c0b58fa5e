//! KV at other places: on the device, and in this machine's memory.

use super::super::size::BLOCK;
use super::super::swaps::space_of;
use super::{Bench, Work, bytes_of};
use kvasir_cuda::ops::{self, Copy, Deviation, KvPiece, Relocate};
use kvasir_cuda::{DeviceError, DeviceKv, SwapPart};
use kvasir_kernels::{RemoteKv, SwapDirection};
use kvasir_sidecar::swapping::{Copied, copy_blocks};
use std::time::Instant;

impl Bench<'_> {
    pub(super) fn moves(&self) -> Result<(), DeviceError> {
        // One layer, so that a piece is as small as pieces get.
        let (config, shape) = (&self.size.config, self.size.pool(1));
        let blocks = self.size.moved * 16;
        let bytes = blocks * shape.block_bytes();
        let (pool, packed) = (self.filled(bytes)?, self.device.allocate(bytes)?);
        let piece = |block: usize| KvPiece {
            packed: (block * shape.block_bytes() / 2) as u64,
            packed_tokens: BLOCK as u32,
            block: ((block * 37) % blocks) as u32,
            token_begin: 0,
            token_count: BLOCK as u32,
            layer_begin: 0,
            layer_count: 1,
            head_begin: 0,
            head_count: config.kv_head_count as u32,
        };
        let list: Vec<u8> = (0..blocks).flat_map(|block| piece(block).to_bytes(&shape)).collect();
        let list = self.uploaded(&list)?;
        for (name, copy) in [("kv gather", Copy::Gather), ("kv scatter", Copy::Scatter)] {
            self.line(name, &format!("{blocks} blocks"), Work::bytes(2 * bytes), || {
                ops::kv_copy(self.device, copy, [&pool, &packed, &list], &shape, blocks, 1)
            })?;
        }
        let tokens = blocks / 2 * BLOCK;
        let source = self.uploaded(&bytes_of(0..tokens as u32))?;
        let target = self.uploaded(&bytes_of(tokens as u32..2 * tokens as u32))?;
        let turn = self.filled(config.head_size * 4)?;
        self.line("relocate", &format!("{tokens} tokens"), Work::bytes(bytes), || {
            let op = Relocate {
                pool: &pool,
                source: &source,
                target: &target,
                turn: Some(&turn),
                shape,
                token_count: tokens,
                half: config.head_size / 2,
            };
            ops::relocate(self.device, op)
        })?;
        let deviation = self.device.allocate(tokens * 4)?;
        self.line("kv_deviation", &format!("{tokens} tokens"), Work::bytes(bytes), || {
            let op = Deviation {
                pool: &pool,
                fresh: &source,
                cached: &target,
                deviation: &deviation,
                shape,
                layer: 0,
                token_count: tokens,
            };
            ops::kv_deviation(self.device, op)
        })?;
        Ok(())
    }

    /// Blocks of a whole model's pool to this machine's memory and back: packed one by one, as both ends of a transfer do, and swapped, beside plain
    /// copies of as many bytes.
    pub(super) fn to_and_from_the_host(&self) -> Result<(), DeviceError> {
        let (config, blocks) = (&self.size.config, self.size.moved);
        let shape = self.size.pool(config.layer_count);
        let block_bytes = shape.block_bytes();
        let pool = self.filled(blocks * block_bytes)?;
        let mut bytes = vec![0; blocks * block_bytes];
        let timed = |work: &mut dyn FnMut() -> Result<(), DeviceError>| -> Result<f64, DeviceError> {
            work()?;
            let began = Instant::now();
            work()?;
            Ok((blocks * block_bytes) as f64 / began.elapsed().as_secs_f64() / 1e9)
        };
        let down = timed(&mut || self.device.read(&pool, 0, &mut bytes))?;
        let up = timed(&mut || {
            self.device.write(&pool, 0, &bytes)?;
            self.device.read(&pool, 0, &mut [])
        })?;
        let kv = DeviceKv::new(self.device.another_stream()?, pool.clone(), shape)?;
        let (layers, heads) = (config.layer_count as u32, config.kv_head_count as u32);
        let ranges = || [0..BLOCK as u32, 0..layers, 0..heads];
        let mut one = Vec::new();
        let gathered = timed(&mut || {
            (0..blocks as u32).try_for_each(|block| {
                one.clear();
                kv.gather(block, ranges(), block_bytes, &mut one).map_err(failed)
            })
        })?;
        let scattered =
            timed(&mut || (0..blocks as u32).try_for_each(|block| kv.scatter(block, ranges(), &one).map_err(failed)))?;
        println!(
            "\n| {blocks} blocks of {} KiB | copied, GB/s | block by block, GB/s | of the copy |\n|---|---|---|---|",
            block_bytes >> 10
        );
        for (name, copied, moved) in [("device to host", down, gathered), ("host to device", up, scattered)] {
            line_of([name], &[copied, moved]);
        }
        let stream = self.device.another_stream()?;
        let host = stream.allocate_host(blocks * block_bytes)?;
        let whole = [SwapPart {
            device_offset: 0,
            host_offset: 0,
            bytes: blocks * block_bytes,
        }];
        let space = space_of(kv, shape, blocks as u32).map_err(failed)?;
        println!(
            "\n| {blocks} blocks, page-locked | blocks lie | copied, GB/s | swapped, GB/s | of the copy |\n|---|---|---|---|---|"
        );
        for (name, direction) in [("swap out", SwapDirection::Out), ("swap in", SwapDirection::In)] {
            let copied = timed(&mut || stream.swap(direction, &pool, &host, &whole)?.wait())?;
            for (how, step) in [("in one run", 1), ("apart", 2)] {
                let order = (0..step).flat_map(|first| (first..blocks as u32).step_by(step as usize));
                let pairs: Vec<(u32, u32)> = order.zip(0..).collect();
                let swapped = timed(&mut || {
                    let pairs = pairs.iter().copied();
                    copy_blocks(&space, direction, pairs, &mut Copied::default(), || Ok(())).map_err(failed)
                })?;
                line_of([name, how], &[copied, swapped]);
            }
        }
        Ok(())
    }
}

/// A line of a table: words, two rates, and the second over the first.
fn line_of<'a>(words: impl IntoIterator<Item = &'a str>, [base, rate]: &[f64; 2]) {
    let words: Vec<&str> = words.into_iter().collect();
    println!(
        "| {} | {base:.1} | {rate:.1} | {:.0} % |",
        words.join(" | "),
        rate / base * 100.0
    );
}

fn failed(error: impl std::fmt::Display) -> DeviceError {
    DeviceError::Failed(error.to_string())
}
