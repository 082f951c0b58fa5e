//! Transfers of several threads on one device.

use kvasir_cuda::ops::PoolShape;
use kvasir_cuda::{Device, DeviceKv};
use kvasir_kernels::RemoteKv;
use kvasir_simt::SimtDevice;
use kvasir_simt::suite::Random;
use std::sync::Arc;

const SHAPE: PoolShape = PoolShape {
    layer_count: 2,
    kv_head_count: 2,
    head_size: 16,
    block_size: 16,
};
/// More than there are lanes, so that some wait.
const THREADS: u32 = 6;
const ROUNDS: usize = 4;

#[test]
fn transfers_at_the_same_time_keep_their_bytes_apart() {
    let device: Arc<dyn Device> = Arc::new(SimtDevice::new(8 << 20, 5));
    let pool = device.allocate(THREADS as usize * SHAPE.block_bytes()).expect("memory");
    let kv = DeviceKv::new(device, pool, SHAPE).expect("memory");
    let ranges = || [0..16, 0..2, 0..2];
    std::thread::scope(|scope| {
        for block in 0..THREADS {
            let kv = &kv;
            scope.spawn(move || {
                let mut random = Random::new(u64::from(block));
                for _ in 0..ROUNDS {
                    let data: Vec<u8> = (0..SHAPE.block_bytes()).map(|_| random.bits() as u8).collect();
                    kv.scatter(block, ranges(), &data).expect("it is written");
                    let mut found = vec![7];
                    kv.gather(block, ranges(), data.len(), &mut found).expect("it is read");
                    assert_eq!((found[0], &found[1..]), (7, &data[..]), "block {block}");
                }
            });
        }
    });
}
