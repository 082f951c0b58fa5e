//! Blocks that leave a device's pool and come back at other places while the device works, bit for bit.

use crate::suite::Random;
use kvasir_cuda::ops::{Gemm, PoolShape};
use kvasir_cuda::{Device, DeviceError, DeviceKv};
use kvasir_kernels::{KvDtype, KvPool, KvShape, KvShards, PoolError, SwapDirection, SwapSpace};
use kvasir_sidecar::swapping::{Copied, copy_blocks};
use std::sync::Arc;

const SHAPE: PoolShape = PoolShape {
    layer_count: 2,
    kv_head_count: 2,
    head_size: 64,
    block_size: 32,
};
const BLOCKS: u32 = 64;
/// Blocks that leave, the first ones. Each comes back so many places later.
const SWAPPED: u32 = 48;
const SHIFT: u32 = 16;
const POISON: u8 = 0xff;

/// Host memory for all blocks of a pool.
pub(super) fn space_of(kv: DeviceKv, shape: PoolShape, blocks: u32) -> Result<SwapSpace, PoolError> {
    let kv_shape = KvShape {
        layer_count: shape.layer_count,
        kv_head_count: shape.kv_head_count,
        head_size: shape.head_size,
        block_size: shape.block_size,
        dtype: KvDtype::Bf16,
    };
    let pool = KvShards::whole(KvPool::remote(kv_shape, blocks, Box::new(kv))?);
    SwapSpace::new(Arc::new(pool), u64::from(blocks) * shape.block_bytes() as u64)
}

/// Swaps out, poisons, swaps in elsewhere, and compares the whole pool.
pub(super) fn swaps(device: &dyn Device) -> Result<String, String> {
    swapped(device).map_err(|error| error.to_string())
}

fn swapped(device: &dyn Device) -> Result<String, DeviceError> {
    let block_bytes = SHAPE.block_bytes();
    let mut random = Random::new(3);
    let bytes: Vec<u8> = (0..BLOCKS as usize * block_bytes)
        .map(|_| random.bits() as u8)
        .collect();
    let pool = device.allocate(bytes.len())?;
    device.write(&pool, 0, &bytes)?;
    // What another stream copies has to be there.
    device.read(&pool, 0, &mut [])?;
    let kv = DeviceKv::new(device.another_stream()?, pool.clone(), SHAPE)?;
    let space = space_of(kv, SHAPE, BLOCKS).map_err(failed)?;
    // A run, blocks one by one, and another run.
    let third = SWAPPED / 3;
    let leaving: Vec<u32> = (0..third)
        .chain((third..2 * third).rev())
        .chain(2 * third..SWAPPED)
        .collect();
    let coming = leaving.iter().map(|block| (block + SHIFT) % BLOCKS);
    let out = beside(
        device,
        &space,
        SwapDirection::Out,
        leaving.iter().copied().zip(0..).collect(),
    )?;
    let poison = vec![POISON; SWAPPED as usize * block_bytes];
    device.write(&pool, 0, &poison)?;
    device.read(&pool, 0, &mut [])?;
    let back = beside(device, &space, SwapDirection::In, coming.zip(0..).collect())?;
    let mut found = vec![0; bytes.len()];
    device.read(&pool, 0, &mut found)?;
    let (poisoned, moved) = (SHIFT as usize * block_bytes, SWAPPED as usize * block_bytes);
    let expected = [&poison[..poisoned], &bytes[..moved]].concat();
    match found.iter().zip(&expected).position(|(a, b)| a != b) {
        Some(at) => Err(DeviceError::Failed(format!(
            "byte {} of block {} is {}, not {}",
            at % block_bytes,
            at / block_bytes,
            found[at],
            expected[at]
        ))),
        None => Ok(format!(
            "{SWAPPED} blocks in {} copies out, {} back",
            out.groups, back.groups
        )),
    }
}

/// Swaps while the device multiplies.
fn beside(
    device: &dyn Device,
    space: &SwapSpace,
    direction: SwapDirection,
    pairs: Vec<(u32, u32)>,
) -> Result<Copied, DeviceError> {
    let [rows, cols, inner] = [16, 64, 64];
    let (x, weights) = (device.allocate(rows * inner * 2)?, device.allocate(cols * inner * 2)?);
    let out = device.allocate(rows * cols * 4)?;
    device.write(&x, 0, &vec![0; rows * inner * 2])?;
    device.write(&weights, 0, &vec![0; cols * inner * 2])?;
    let op = Gemm {
        x: &x,
        weights: &weights,
        out: &out,
        is_f32: true,
        rows,
        cols,
        inner,
    };
    std::thread::scope(|scope| {
        let swapping = scope.spawn(|| {
            let mut copied = Copied::default();
            copy_blocks(space, direction, pairs, &mut copied, || Ok(())).map(|()| copied)
        });
        loop {
            device.product(&op)?;
            if swapping.is_finished() {
                let copied = swapping.join().map_err(|_| failed("the swap panicked"))?;
                return copied.map_err(failed);
            }
        }
    })
}

fn failed(error: impl std::fmt::Display) -> DeviceError {
    DeviceError::Failed(error.to_string())
}
