//! Rotary position embedding, and the way of keys and values into the pool.

use crate::aligned::{AlignedF32, SharedMut};
use crate::batch::Batch;
use crate::cpu::Cpu;
use crate::error::{KernelError, expect_len};
use crate::isa::Kernel;
use crate::kv_pool::KvDtype;
use crate::kv_shards::KvShards;
use crate::simd::{LANES, Simd};

/// Cosines and sines for the rows of one batch, shared by all layers.
#[derive(Default)]
pub struct RopeTable {
    half: usize,
    values: AlignedF32,
}

impl RopeTable {
    /// Computes `cos` and `sin` of `position · inverse_frequencies[i]`, times `scale`: the angle rounds to f32 once, as transformers does,
    /// then f64.
    pub fn fill(&mut self, cpu: &Cpu, batch: &Batch<'_>, inverse_frequencies: &[f32], scale: f32) {
        let half = inverse_frequencies.len();
        self.half = half;
        self.values.resize(batch.rows() * 2 * half);
        let values = SharedMut::new(&mut self.values);
        cpu.over_rows(batch.rows(), &|begin, end| {
            for row in begin..end {
                // SAFETY: the ranges of rows of one region are disjoint.
                let (cos, sin) = unsafe { values.slice(row * 2 * half, 2 * half) }.split_at_mut(half);
                let position = batch.locate(row).1 as f32;
                for ((frequency, cos), sin) in inverse_frequencies.iter().zip(cos).zip(sin) {
                    let (sine, cosine) = f64::from(position * frequency).sin_cos();
                    (*cos, *sin) = (cosine as f32 * scale, sine as f32 * scale);
                }
            }
        });
    }

    fn row(&self, row: usize) -> (&[f32], &[f32]) {
        self.values[row * 2 * self.half..(row + 1) * 2 * self.half].split_at(self.half)
    }
}

/// Projections of one layer, row-major.
pub struct Projections<'a> {
    /// `[rows, head_count · head_size]`; rotated in place.
    pub query: &'a mut [f32],
    /// `[rows, kv_head_count · head_size]`; rotated in place.
    pub key: &'a mut [f32],
    /// `[rows, kv_head_count · head_size]`.
    pub value: &'a [f32],
}

/// Rotates queries and keys, half-split convention: with `d` the rotated size, element `i < d/2` pairs with `i + d/2`;
/// `(a, b) -> (a cos - b sin, b cos + a sin)`. Then writes keys and values into the pool, rounded to its type.
/// Source: Su et al., "RoFormer", 2021; the half-split order is that of GPT-NeoX and transformers.
///
/// # Errors
/// [`KernelError::ShapeMismatch`] when a buffer has not the batch's rows, or the table was filled for another batch.
pub fn rotate_and_store(
    cpu: &Cpu,
    pool: &KvShards,
    layer: usize,
    batch: &Batch<'_>,
    table: &RopeTable,
    projections: Projections<'_>,
) -> Result<(), KernelError> {
    let rows = batch.rows();
    let head_size = pool.shape().head_size;
    let kv_width = pool.shape().kv_head_count * head_size;
    if rows == 0 {
        return Ok(());
    }
    let query_width = projections.query.len() / rows;
    expect_len(
        "query projection",
        rows * (query_width / head_size) * head_size,
        projections.query.len(),
    )?;
    expect_len("key projection", rows * kv_width, projections.key.len())?;
    expect_len("value projection", rows * kv_width, projections.value.len())?;
    expect_len("rope table", rows * 2 * table.half, table.values.len())?;
    if table.half * 2 > head_size {
        return Err(KernelError::ShapeMismatch {
            what: "rotated size",
            expected: head_size,
            actual: table.half * 2,
        });
    }
    let (query, key) = (SharedMut::new(projections.query), SharedMut::new(projections.key));
    let value = projections.value;
    cpu.over_rows(rows, &|begin, end| {
        for row in begin..end {
            // SAFETY: the ranges of rows of one region are disjoint.
            let (query, key) = unsafe {
                (
                    query.slice(row * query_width, query_width),
                    key.slice(row * kv_width, kv_width),
                )
            };
            let (cos, sin) = table.row(row);
            cpu.isa.run(Rotate {
                head_size,
                cos,
                sin,
                heads: query,
            });
            cpu.isa.run(Rotate {
                head_size,
                cos,
                sin,
                heads: key,
            });
            let (span, position) = batch.locate(row);
            let block = span.blocks[position / pool.shape().block_size];
            let token = position % pool.shape().block_size;
            for (is_value, source) in [(false, &*key), (true, &value[row * kv_width..(row + 1) * kv_width])] {
                for (kv_head, from) in source.chunks_exact(head_size).enumerate() {
                    let (pool, kv_head) = pool.locate(kv_head);
                    // SAFETY: the batch gives each (block, token) to one row only, rows are disjoint here, the engine reads none of
                    // it during this region, and transfers do not touch tokens that are being computed (the pool's rule).
                    let to = unsafe { pool.token_mut(block, layer, is_value, kv_head, token) };
                    cpu.isa.run(Narrow {
                        dtype: pool.shape().dtype,
                        from,
                        to,
                    });
                }
            }
        }
    });
    Ok(())
}

pub(crate) struct Rotate<'a> {
    pub(crate) head_size: usize,
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
    pub(crate) heads: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let half = self.cos.len();
        for head in self.heads.chunks_exact_mut(self.head_size) {
            let (first, rest) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(&mut rest[..half]).zip(self.cos).zip(self.sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// Writes f32 values in the pool's type, little endian.
pub(crate) struct Narrow<'a> {
    pub(crate) dtype: KvDtype,
    pub(crate) from: &'a [f32],
    pub(crate) to: &'a mut [u8],
}

impl Kernel for Narrow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.dtype == KvDtype::F32 {
            for (from, to) in self.from.iter().zip(self.to.as_chunks_mut::<4>().0) {
                *to = from.to_le_bytes();
            }
            return;
        }
        for (from, to) in self.from.chunks(LANES).zip(self.to.chunks_mut(2 * LANES)) {
            let mut full = [0.0; LANES];
            full[..from.len()].copy_from_slice(from);
            let mut bits = [0; LANES];
            match self.dtype {
                KvDtype::F16 => s.store_f16(s.load(&full), &mut bits),
                _ => s.store_bf16(s.load(&full), &mut bits),
            }
            for (bits, to) in bits.iter().zip(to.as_chunks_mut::<2>().0) {
                *to = bits.to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Span;
    use crate::isa::Isa;
    use crate::kv_pool::KvShape;
    use half::{bf16, f16};

    #[test]
    fn rotates_by_position_and_stores_rounded_keys_and_values() {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, 2).unwrap();
                let shape = KvShape {
                    layer_count: 2,
                    kv_head_count: 2,
                    head_size: 24,
                    block_size: 16,
                    dtype,
                };
                let pool = KvShards::new(shape, 1, (shape.bytes_per_token() * 16 * 4) as u64).unwrap();
                let span = Span {
                    start_position: 13,
                    token_count: 9,
                    blocks: &[3, 1],
                };
                let batch = Batch::new(&pool, vec![span]).unwrap();
                let frequencies = [1.0, 0.3, 0.02, 0.001];
                let mut table = RopeTable::default();
                table.fill(&cpu, &batch, &frequencies, 0.75);
                let wave = |n: usize, phase: f32| (0..n).map(|i| (i as f32 * 0.37 + phase).sin()).collect::<Vec<_>>();
                let (mut query, mut key, value) = (wave(9 * 96, 0.0), wave(9 * 48, 1.0), wave(9 * 48, 2.0));
                let (plain_query, plain_key) = (query.clone(), key.clone());
                let projections = Projections {
                    query: &mut query,
                    key: &mut key,
                    value: &value,
                };
                rotate_and_store(&cpu, &pool, 1, &batch, &table, projections).unwrap();

                let rotated = |plain: &[f32], index: usize, width: usize| {
                    let (row, offset) = (index / width, index % width % 24);
                    if offset >= 8 {
                        return f64::from(plain[index]); // Only 2 · 4 elements of each head rotate.
                    }
                    let angle = f64::from((13 + row) as f32 * frequencies[offset % 4]);
                    let (sign, partner) = if offset < 4 {
                        (-1.0, index + 4)
                    } else {
                        (1.0, index - 4)
                    };
                    0.75 * (f64::from(plain[index]) * angle.cos() + sign * f64::from(plain[partner]) * angle.sin())
                };
                for (index, value) in query.iter().enumerate() {
                    assert!((f64::from(*value) - rotated(&plain_query, index, 96)).abs() < 3e-7);
                }
                for row in 0..9 {
                    let (block, token) = if row < 3 { (3, 13 + row) } else { (1, row - 3) };
                    let mut stored = Vec::new();
                    pool.shards()[0]
                        .gather(block, token as u32..token as u32 + 1, 1..2, 0..2, &mut stored)
                        .unwrap();
                    let source = [&key[row * 48..][..48], &value[row * 48..][..48]].concat();
                    let expected: Vec<u8> = match dtype {
                        KvDtype::F32 => source.iter().flat_map(|x| x.to_le_bytes()).collect(),
                        KvDtype::F16 => source.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                        KvDtype::Bf16 => source.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
                    };
                    assert_eq!(stored, expected);
                }
                for (index, value) in key.iter().enumerate() {
                    assert!((f64::from(*value) - rotated(&plain_key, index, 48)).abs() < 3e-7);
                }
            }
        }
    }
}
