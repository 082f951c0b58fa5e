//! KV that was computed at one place of a text, put at another.

use crate::cpu::Cpu;
use crate::isa::Kernel;
use crate::kv_pool::{KvDtype, PoolError};
use crate::kv_shards::KvShards;
use crate::rope::{Narrow, Rotate};
use crate::simd::Simd;

/// A run of tokens and where it goes. Tables are block tables; starts count tokens from the beginning of a table.
#[derive(Debug, Clone, Copy)]
pub struct Relocation<'a> {
    /// Table that has the tokens.
    pub source_blocks: &'a [u32],
    /// First token in it.
    pub source_start: usize,
    /// Table that gets them; shares no written block with the source's.
    pub target_blocks: &'a [u32],
    /// First token in it.
    pub target_start: usize,
    /// Tokens.
    pub token_count: usize,
    /// New position minus old position, of every token.
    pub position_shift: i64,
}

/// Copies the KV of some tokens, in all layers, rotating keys by the difference of positions; values stay as they are.
///
/// Rotary embedding turns a key by an angle proportional to its position, and turns add up (Su et al., "RoFormer", 2021, section 3.2), so a
/// key at position `p` turned by the angle of `d` is the key at `p + d`. Angles are computed in f64 from the difference; what is lost is the
/// rounding of the stored key (f16: 11 bits, bf16: 8 bits) once more, so a run is best relocated once, from where it was encoded.
/// A shift of 0 copies bits. The caller must be the only one to touch the target's tokens.
///
/// # Errors
/// [`PoolError::UnknownBlock`], [`PoolError::Range`] when a table is too short, [`PoolError::Overlap`]; nothing is written then.
pub fn place(cpu: &Cpu, pool: &KvShards, run: Relocation<'_>, inverse_frequencies: &[f32]) -> Result<(), PoolError> {
    run.check(pool)?;
    let shape = *pool.shape();
    let half = inverse_frequencies.len().min(shape.head_size / 2);
    let turns = inverse_frequencies[..half]
        .iter()
        .map(|frequency| (run.position_shift as f64 * f64::from(*frequency)).sin_cos());
    let (sin, cos): (Vec<f32>, Vec<f32>) = turns.map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
    let at = |blocks: &[u32], token: usize| (blocks[token / shape.block_size], token % shape.block_size);
    cpu.over_rows(run.token_count, &|begin, end| {
        let mut key = vec![0.0; shape.head_size];
        for index in begin..end {
            let (source, from) = at(run.source_blocks, run.source_start + index);
            let (target, to) = at(run.target_blocks, run.target_start + index);
            for layer in 0..shape.layer_count {
                for head in 0..shape.kv_head_count {
                    let (pool, head) = pool.locate(head);
                    for is_value in [false, true] {
                        // SAFETY: both coordinates were checked; no block that is written is read (checked), each token is written by one
                        // row, and nobody else touches the target by the caller's promise.
                        let (old, new) = unsafe {
                            (
                                pool.token(source, layer, is_value, head, from),
                                pool.token_mut(target, layer, is_value, head, to),
                            )
                        };
                        if is_value || run.position_shift == 0 {
                            new.copy_from_slice(old);
                            continue;
                        }
                        cpu.isa.run(Widen {
                            dtype: shape.dtype,
                            from: old,
                            to: &mut key,
                        });
                        cpu.isa.run(Rotate {
                            head_size: shape.head_size,
                            cos: &cos,
                            sin: &sin,
                            heads: &mut key,
                        });
                        cpu.isa.run(Narrow {
                            dtype: shape.dtype,
                            from: &key,
                            to: new,
                        });
                    }
                }
            }
        }
    });
    Ok(())
}

impl Relocation<'_> {
    /// Whether the pool has all that the run names, and no block is read and written at once.
    ///
    /// # Errors
    /// As [`place`].
    pub fn check(&self, pool: &KvShards) -> Result<(), PoolError> {
        let block_size = pool.shape().block_size;
        let touched = |blocks: &[u32], start: usize| -> Result<Vec<u32>, PoolError> {
            let capacity = blocks.len() * block_size;
            let end = start.saturating_add(self.token_count);
            if self.token_count == 0 || end > capacity {
                return Err(PoolError::Range {
                    what: "tokens",
                    begin: u32::try_from(start).unwrap_or(u32::MAX),
                    end: u32::try_from(end).unwrap_or(u32::MAX),
                    limit: capacity,
                });
            }
            let touched = blocks[start / block_size..end.div_ceil(block_size)].to_vec();
            match touched.iter().find(|block| **block >= pool.block_count()) {
                Some(block) => Err(PoolError::UnknownBlock {
                    block: *block,
                    block_count: pool.block_count(),
                }),
                None => Ok(touched),
            }
        };
        let read = touched(self.source_blocks, self.source_start)?;
        let written = touched(self.target_blocks, self.target_start)?;
        let mut once = written.clone();
        once.sort_unstable();
        once.dedup();
        match written
            .iter()
            .find(|block| read.contains(block) || once.len() != written.len())
        {
            Some(block) => Err(PoolError::Overlap { block: *block }),
            None => Ok(()),
        }
    }
}

/// Reads values in the pool's type.
pub(crate) struct Widen<'a> {
    pub(crate) dtype: KvDtype,
    pub(crate) from: &'a [u8],
    pub(crate) to: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.dtype {
            KvDtype::F32 => {
                for (from, to) in self.from.as_chunks::<4>().0.iter().zip(self.to) {
                    *to = f32::from_le_bytes(*from);
                }
            }
            KvDtype::F16 => {
                for (from, to) in self.from.as_chunks::<2>().0.iter().zip(self.to) {
                    *to = half::f16::from_le_bytes(*from).to_f32();
                }
            }
            KvDtype::Bf16 => {
                for (from, to) in self.from.as_chunks::<2>().0.iter().zip(self.to) {
                    *to = half::bf16::from_le_bytes(*from).to_f32();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_pool::KvShape;
    use proptest::prelude::*;

    const SHAPE: KvShape = KvShape {
        layer_count: 2,
        kv_head_count: 2,
        head_size: 8,
        block_size: 16,
        dtype: KvDtype::F32,
    };
    const FREQUENCIES: [f32; 4] = [1.0, 0.3, 0.01, 0.0007];

    /// Keys as if rotated to `position`: pair `i` of the key has angle `base_i + position · frequency_i`.
    fn write(pool: &KvShards, blocks: &[u32], token: usize, position: i64) {
        for layer in 0..SHAPE.layer_count {
            for head in 0..SHAPE.kv_head_count {
                for is_value in [false, true] {
                    let mut values = [0.0_f32; 8];
                    for (pair, frequency) in FREQUENCIES.iter().enumerate() {
                        let angle = (token * 7 + pair * 3 + layer + head) as f64
                            + if is_value {
                                0.0
                            } else {
                                position as f64 * f64::from(*frequency)
                            };
                        (values[pair], values[pair + 4]) = (angle.cos() as f32, angle.sin() as f32);
                    }
                    // SAFETY: this test is alone.
                    let to =
                        unsafe { pool.shards()[0].token_mut(blocks[token / 16], layer, is_value, head, token % 16) };
                    for (value, bytes) in values.iter().zip(to.as_chunks_mut::<4>().0) {
                        *bytes = value.to_le_bytes();
                    }
                }
            }
        }
    }

    fn read(pool: &KvShards, blocks: &[u32], token: usize, is_value: bool) -> Vec<f32> {
        let mut values = vec![0.0; 8];
        // SAFETY: this test is alone.
        let from = unsafe { pool.shards()[0].token(blocks[token / 16], 1, is_value, 1, token % 16) };
        let widen = Widen {
            dtype: KvDtype::F32,
            from,
            to: &mut values,
        };
        crate::isa::Isa::detect().run(widen);
        values
    }

    proptest! {
        #[test]
        fn keys_turn_by_the_difference_and_values_stay(
            (start, to, count) in (0usize..30, 0usize..30, 1usize..18),
            shift in -4000i64..4000,
        ) {
            let cpu = Cpu::new(2).unwrap();
            let pool = KvShards::new(SHAPE, 1, 1 << 18).unwrap();
            let (source, target, expected) = ([5, 0, 3], [1, 7, 2], [4, 8, 9]);
            for index in 0..count {
                write(&pool, &source, start + index, 9);
            }
            let run = Relocation {
                source_blocks: &source, source_start: start, target_blocks: &target, target_start: to, token_count: count,
                position_shift: shift,
            };
            place(&cpu, &pool, run, &FREQUENCIES).unwrap();
            for index in 0..count {
                // The same token's content, written where it would have been computed.
                write(&pool, &expected, start + index, 9 + shift);
                prop_assert_eq!(read(&pool, &target, to + index, true), read(&pool, &expected, start + index, true));
                let keys = read(&pool, &target, to + index, false);
                for (ours, theirs) in keys.iter().zip(read(&pool, &expected, start + index, false)) {
                    prop_assert!((ours - theirs).abs() < 2e-6, "{} {}", ours, theirs);
                }
            }
        }
    }

    #[test]
    fn tables_that_do_not_hold_the_run_or_share_a_block_are_refused() {
        let cpu = Cpu::new(1).unwrap();
        let pool = KvShards::new(SHAPE, 1, 1 << 18).unwrap();
        let run = Relocation {
            source_blocks: &[0, 1],
            source_start: 20,
            target_blocks: &[2],
            target_start: 0,
            token_count: 12,
            position_shift: 1,
        };
        assert!(place(&cpu, &pool, run, &FREQUENCIES).is_ok());
        for (wrong, needle) in [
            (Relocation { token_count: 13, ..run }, "20..33"),
            (Relocation { token_count: 0, ..run }, "tokens"),
            (
                Relocation {
                    target_blocks: &[1],
                    ..run
                },
                "block 1",
            ),
            (
                Relocation {
                    target_blocks: &[99],
                    ..run
                },
                "block 99",
            ),
            (
                Relocation {
                    source_start: usize::MAX,
                    ..run
                },
                "tokens",
            ),
        ] {
            let message = place(&cpu, &pool, wrong, &FREQUENCIES).unwrap_err().to_string();
            assert!(message.contains(needle), "{message}");
        }
    }
}
