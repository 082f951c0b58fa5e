//! Digests of what lies in a device's memory, the host's own: `kernels/xxh3.cu`, and the merging of what it gives.
//!
//! Source: Collet, XXH3 128 bits, in "xxHash fast digest algorithm", version 0.2.0, inputs of more than 240 bytes, seed 0.

use kvasir_cuda::{Args, Buffer, Device, DeviceError, Launch, Rooms};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_128;

/// Up to here inputs follow formulas of their own.
const SHORT_BYTES: u64 = 240;
const STRIPE_BYTES: usize = 64;
const BLOCK_BYTES: u64 = 1024;
const WARPS: u64 = 4;

const PRIMES_32: [u64; 3] = [0x9e37_79b1, 0x85eb_ca77, 0xc2b2_ae3d];
const PRIMES_64: [u64; 5] = [
    0x9e37_79b1_85eb_ca87,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x85eb_ca77_c2b2_ae63,
    0x27d4_eb2f_1656_67c5,
];
/// What accumulators begin with.
const START: [u64; 8] = [
    PRIMES_32[2],
    PRIMES_64[0],
    PRIMES_64[1],
    PRIMES_64[2],
    PRIMES_64[3],
    PRIMES_32[1],
    PRIMES_64[4],
    PRIMES_32[0],
];
/// The formula's own secret, in words as a little-endian machine reads it.
const SECRET: [u64; 24] = [
    0xbe4b_a423_396c_feb8,
    0x1cad_21f7_2c81_017c,
    0xdb97_9083_e96d_d4de,
    0x1f67_b3b7_a4a4_4072,
    0x78e5_c0cc_4ee6_79cb,
    0x2172_ffcc_7dd0_5a82,
    0x8e24_43f7_7446_08b8,
    0x4c26_3a81_e690_35e0,
    0xcb00_c391_bb52_283c,
    0xa32e_531b_8b65_d088,
    0x4ef9_0da2_9748_6471,
    0xd8ac_dea9_46ef_1938,
    0x3f34_9ce3_3f76_faa8,
    0x1d4f_0bc7_c7bb_dcf9,
    0x3159_b4cd_4be0_518a,
    0x6473_78d9_c97e_9fc8,
    0xc3eb_d334_83ac_c5ea,
    0xeb63_13fa_ffa0_81c5,
    0x49da_f0b7_51dd_0d17,
    0x9e68_d429_2655_16d3,
    0xfca1_477d_58be_162b,
    0xce31_d07a_d1b8_f88f,
    0x2804_1695_8f3a_cb45,
    0x7e40_4bbb_cafb_d7af,
];
const SECRET_BYTES: usize = 8 * SECRET.len();
/// Where the last stripe's part of the secret begins, counted from its end.
const LAST_STRIPE: usize = STRIPE_BYTES + 7;
/// Where those of the digest's halves do, from its beginning, and 64 bytes from its end.
const MERGED: usize = 11;

/// Hashes stretches of one device's memory; keeps its own memory there between calls.
#[derive(Default)]
pub struct DeviceDigests {
    memory: Rooms<Use>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Stretches,
    Sums,
    Accumulators,
}

impl DeviceDigests {
    /// XXH3-128 of each stretch, in bytes of `data`.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] for a stretch that does not begin and end at a multiple of 8; [`DeviceError::Range`],
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Failed`].
    pub fn xxh3_128(
        &mut self,
        device: &dyn Device,
        data: &Buffer,
        stretches: &[Range<u64>],
    ) -> Result<Vec<u128>, DeviceError> {
        for stretch in stretches {
            data.check(stretch.start as usize, (stretch.end - stretch.start) as usize)?;
            if let Some(value) = [stretch.start, stretch.end].into_iter().find(|at| at % 8 != 0) {
                return Err(DeviceError::Unsupported {
                    what: "an end of what is hashed",
                    value: value as usize,
                    allowed: "multiples of 8",
                });
            }
        }
        let length = |stretch: &Range<u64>| stretch.end - stretch.start;
        let is_long = |stretch: &&Range<u64>| length(stretch) > SHORT_BYTES;
        let long: Vec<Range<u64>> = stretches.iter().filter(is_long).cloned().collect();
        let mut accumulated = self.accumulate(device, data, &long)?.into_iter();
        let digest = |stretch: &Range<u64>| {
            let accumulators = is_long(&stretch).then(|| accumulated.next()).flatten();
            if let Some(accumulators) = accumulators {
                return Ok(merged(&accumulators, length(stretch)));
            }
            let mut bytes = vec![0; length(stretch) as usize];
            device.read(data, stretch.start as usize, &mut bytes)?;
            Ok(xxh3_128(&bytes))
        };
        stretches.iter().map(digest).collect()
    }

    /// The accumulators of each stretch.
    fn accumulate(
        &mut self,
        device: &dyn Device,
        data: &Buffer,
        stretches: &[Range<u64>],
    ) -> Result<Vec<[u64; 8]>, DeviceError> {
        let blocks = stretches.iter().map(|own| (own.end - own.start - 1) / BLOCK_BYTES);
        let Some(blocks_max) = blocks.max() else {
            return Ok(Vec::new());
        };
        let count = stretches.len();
        let own = stretches.iter().fold(Args::new(), |args, stretch| {
            args.u64(stretch.start / 8).u64((stretch.end - stretch.start) / 8)
        });
        let own = self.memory.filled(device, Use::Stretches, &own.finish())?;
        let sums = self.memory.room(device, Use::Sums, 64 * count * blocks_max as usize)?;
        let accumulators = self.memory.room(device, Use::Accumulators, 64 * count)?;
        let arguments = Args::new()
            .buffer(&own)
            .buffer(data)
            .buffer(&sums)
            .buffer(&accumulators);
        let arguments = arguments.u32(blocks_max as u32).u32(0);
        let numbers = START.into_iter().chain(SECRET).chain(part(SECRET_BYTES - LAST_STRIPE));
        let arguments = numbers.fold(arguments, Args::u64).finish();
        let launch = |kernel, grid, threads| {
            let launch = Launch {
                file: "xxh3",
                kernel,
                grid,
                threads,
                shared_bytes: 0,
            };
            device.launch(launch, &arguments)
        };
        if blocks_max > 0 {
            launch("xxh3_blocks", [blocks_max.div_ceil(WARPS) as u32, count as u32, 1], 128)?;
        }
        launch("xxh3_accumulate", [count as u32, 1, 1], 32)?;
        let mut bytes = vec![0; 64 * count];
        device.read(&accumulators, 0, &mut bytes)?;
        let words = |bytes: &[u8; 64]| {
            let mut words = [0; 8];
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
                *word = u64::from_ne_bytes(*bytes);
            }
            words
        };
        Ok(bytes.as_chunks().0.iter().map(words).collect())
    }
}

/// Eight words of the secret from any byte on.
fn part(begin: usize) -> [u64; 8] {
    let bytes: Vec<u8> = SECRET.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(bytes[begin..].as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// Both halves of a digest.
fn merged(accumulators: &[u64; 8], length: u64) -> u128 {
    let half = |secret: [u64; 8], start: u64| {
        let folded = |at: usize| {
            let product = u128::from(accumulators[at] ^ secret[at]) * u128::from(accumulators[at + 1] ^ secret[at + 1]);
            product as u64 ^ (product >> 64) as u64
        };
        let sum = [0, 2, 4, 6].into_iter().map(folded).fold(start, u64::wrapping_add);
        let sum = (sum ^ sum >> 37).wrapping_mul(0x1656_6791_9e37_79f9);
        sum ^ sum >> 32
    };
    let low = half(part(MERGED), length.wrapping_mul(PRIMES_64[0]));
    let high = half(
        part(SECRET_BYTES - STRIPE_BYTES - MERGED),
        !length.wrapping_mul(PRIMES_64[1]),
    );
    u128::from(high) << 64 | u128::from(low)
}
