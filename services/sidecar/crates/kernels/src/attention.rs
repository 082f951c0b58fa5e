//! Causal attention over block tables, for any mix of prompt chunks and decode rows.
//!
//! A task is (row tile, KV head): up to 16 consecutive rows of a sequence times the query heads that share the KV head. The keys are cut into
//! absolute partitions of 512 from position 0. Within one it walks them in tiles of 16 with the online softmax of FlashAttention (Dao et al.,
//! NeurIPS 2022): a key tile is loaded, widened and transposed once for all queries of the task. Partitions are joined in their order by the
//! same rescaling, so where tasks are few and contexts long (decode) the partitions of one task run side by side, as in Flash-Decoding, and
//! nobody can tell. A query meets the same tiles with the same operations whatever tile of rows, chunk, batch or block size it came in: scores
//! sum over the head's elements in order, weights over the keys in order.

mod running;

use crate::aligned::{SharedMut, as_f32};
use crate::batch::{Batch, RowTile};
use crate::cpu::Cpu;
use crate::error::{KernelError, expect_len};
use crate::isa::Kernel;
use crate::kv_pool::{KEY_TILE, KvDtype, KvPool};
use crate::kv_shards::KvShards;
use crate::math::exp;
use crate::simd::element::{Brain, Element, Half, Single};
use crate::simd::{LANES, Simd, unroll};
use running::{Join, Running};
use std::ops::Range;

const _: () = assert!(KEY_TILE == LANES, "a lane holds a key");

/// `out = softmax(q Kᵀ / sqrt(head_size)) V` for each row and query head, over positions `0..=position(row)`.
///
/// `query` and `out`: `[rows, head_count · head_size]`, row-major; query head `h` reads KV head `h / (head_count / kv_head_count)`.
/// Keys and values of the batch's own rows must be in the pool (see [`crate::rotate_and_store`]). A task reads one shard's memory only, and
/// writes its own heads' columns: the rows of all shards' heads are what an output projection sums over, in one order whatever the shards.
///
/// # Errors
/// [`KernelError::ShapeMismatch`] when `query` or `out` has not the batch's rows, or heads do not divide evenly.
pub fn attention(
    cpu: &Cpu,
    pool: &KvShards,
    layer: usize,
    batch: &Batch<'_>,
    query: &[f32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    if batch.rows() == 0 {
        return Ok(());
    }
    let shape = pool.shape();
    let width = query.len() / batch.rows();
    let group = width / (shape.kv_head_count * shape.head_size);
    expect_len(
        "queries",
        batch.rows() * group * shape.kv_head_count * shape.head_size,
        query.len(),
    )?;
    expect_len("attention output", query.len(), out.len())?;
    if layer >= shape.layer_count {
        return Err(KernelError::ShapeMismatch {
            what: "layer index + 1",
            expected: shape.layer_count,
            actual: layer + 1,
        });
    }
    let call = Call {
        cpu,
        pool,
        layer,
        batch,
        group,
        width,
        query,
    };
    call.run(SharedMut::new(out));
    Ok(())
}

/// Keys of a partition: enough that joining two costs nothing beside walking them, few enough to give many threads work on one sequence.
const PARTITION: usize = 512;
const _: () = assert!(PARTITION.is_multiple_of(KEY_TILE));
/// Tasks for each thread from which a division by rows and heads alone is even enough.
const TASKS_PER_THREAD: usize = 4;

struct Call<'a, 'b> {
    cpu: &'a Cpu,
    pool: &'a KvShards,
    layer: usize,
    batch: &'a Batch<'b>,
    /// Query heads per KV head.
    group: usize,
    width: usize,
    query: &'a [f32],
}

impl Call<'_, '_> {
    fn run(&self, out: SharedMut<'_, f32>) {
        let kv_heads = self.pool.shape().kv_head_count;
        let tasks = self.batch.tiles.len() * kv_heads;
        let partitions = |task: usize| {
            let tile = self.batch.tiles[task / kv_heads];
            (tile.position + tile.rows).div_ceil(PARTITION)
        };
        let threads = &self.cpu.threads;
        if threads.threads() == 1 || tasks >= threads.threads() * TASKS_PER_THREAD {
            threads.run(tasks, &|task| {
                let attend = self.attend(task / kv_heads, task % kv_heads);
                let mut sum = self.partition(&attend, 0);
                for index in 1..partitions(task) {
                    self.cpu.isa.run(Join(&mut sum, &self.partition(&attend, index)));
                }
                self.cpu.isa.run(Finish { attend, sum: &sum, out });
            });
            return;
        }
        let parts: Vec<(usize, usize)> = (0..tasks)
            .flat_map(|task| (0..partitions(task)).map(move |index| (task, index)))
            .collect();
        let mut sums: Vec<Option<Running>> = Vec::new();
        sums.resize_with(parts.len(), || None);
        threads.for_each(&mut sums, |part, sum| {
            let (task, index) = parts[part];
            *sum = Some(self.partition(&self.attend(task / kv_heads, task % kv_heads), index));
        });
        let mut sums = parts
            .iter()
            .map(|(task, _)| *task)
            .zip(sums.into_iter().flatten())
            .peekable();
        while let Some((task, mut sum)) = sums.next() {
            while let Some((_, next)) = sums.next_if(|(other, _)| *other == task) {
                self.cpu.isa.run(Join(&mut sum, &next));
            }
            let attend = self.attend(task / kv_heads, task % kv_heads);
            self.cpu.isa.run(Finish { attend, sum: &sum, out });
        }
    }

    fn attend(&self, tile: usize, kv_head: usize) -> Attend<'_> {
        let tile = self.batch.tiles[tile];
        let (pool, local_head) = self.pool.locate(kv_head);
        Attend {
            pool,
            layer: self.layer,
            kv_head,
            local_head,
            group: self.group,
            width: self.width,
            tile,
            blocks: self.batch.spans()[tile.span].blocks,
            query: self.query,
        }
    }

    fn partition(&self, attend: &Attend<'_>, index: usize) -> Running {
        let keys = index * PARTITION..((index + 1) * PARTITION).min(attend.tile.position + attend.tile.rows);
        self.cpu.isa.run(Walk { attend, keys })
    }
}

#[derive(Clone, Copy)]
struct Attend<'a> {
    pool: &'a KvPool,
    layer: usize,
    /// Of the model.
    kv_head: usize,
    /// The same in the shard's pool.
    local_head: usize,
    /// Query heads per KV head.
    group: usize,
    width: usize,
    tile: RowTile,
    blocks: &'a [u32],
    query: &'a [f32],
}

/// One partition's keys for one task.
struct Walk<'a, 'b> {
    attend: &'a Attend<'b>,
    keys: Range<usize>,
}

impl Kernel for Walk<'_, '_> {
    type Output = Running;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Running {
        match self.attend.pool.shape().dtype {
            KvDtype::F32 => self.attend.walk::<S, Single>(s, self.keys),
            KvDtype::F16 => self.attend.walk::<S, Half>(s, self.keys),
            KvDtype::Bf16 => self.attend.walk::<S, Brain>(s, self.keys),
        }
    }
}

impl Attend<'_> {
    #[inline(always)]
    fn walk<S: Simd, E: Element>(&self, s: S, range: Range<usize>) -> Running {
        let head_size = self.pool.shape().head_size;
        let padded = head_size.next_multiple_of(LANES);
        let queries = self.tile.rows * self.group;
        let scaled = self.scaled_queries(head_size);
        let mut keys = vec![0.0; padded * LANES];
        let mut values = vec![0.0; LANES * padded];
        let mut running = Running::new(queries, padded);
        for first_key in range.clone().step_by(KEY_TILE) {
            self.load_keys::<S, E>(s, first_key, &mut keys);
            self.load_values::<S, E>(s, first_key, padded, &mut values);
            if first_key + KEY_TILE < range.end {
                // Tiles of one head are pages apart, where the hardware's own prefetch does not follow.
                s.prefetch(self.tile_bytes(first_key + KEY_TILE, false));
                s.prefetch(self.tile_bytes(first_key + KEY_TILE, true));
            }
            // Rows before the tile's first key see nothing of it.
            let first_row = first_key.saturating_sub(self.tile.position);
            let mut query = first_row * self.group;
            if S::WIDE {
                while queries - query >= 8 {
                    self.scores::<S, 8>(s, query, first_key, &scaled, &keys, &mut running);
                    query += 8;
                }
            }
            while queries - query >= 3 {
                self.scores::<S, 3>(s, query, first_key, &scaled, &keys, &mut running);
                query += 3;
            }
            while query < queries {
                self.scores::<S, 1>(s, query, first_key, &scaled, &keys, &mut running);
                query += 1;
            }
            self.accumulate(s, first_row * self.group, first_key, padded, &values, &mut running);
        }
        running
    }

    fn scaled_queries(&self, head_size: usize) -> Vec<f32> {
        let scale = 1.0 / (head_size as f32).sqrt();
        let mut scaled = Vec::with_capacity(self.tile.rows * self.group * head_size);
        for row in self.tile.row..self.tile.row + self.tile.rows {
            let start = row * self.width + self.kv_head * self.group * head_size;
            scaled.extend(
                self.query[start..start + self.group * head_size]
                    .iter()
                    .map(|q| q * scale),
            );
        }
        scaled
    }

    #[inline(always)]
    fn tile_bytes(&self, first_key: usize, value: bool) -> &[u8] {
        let block_size = self.pool.shape().block_size;
        let block = self.blocks[first_key / block_size];
        // SAFETY: every position up to the row tile's last was computed in an earlier region or step, or transferred; later tokens of the
        // tile are read but never used. Nobody writes this layer during an attention region of the engine, and transfers do not write into
        // blocks of running sequences (the pool's rule).
        unsafe {
            self.pool
                .tile(block, self.layer, value, self.local_head, first_key % block_size)
        }
    }

    /// Keys of one tile as `[head element][key]`.
    #[inline(always)]
    fn load_keys<S: Simd, E: Element>(&self, s: S, first_key: usize, keys: &mut [f32]) {
        let tile = E::view(self.tile_bytes(first_key, false));
        let head_size = self.pool.shape().head_size;
        let (lines, whole) = (tile.as_chunks::<LANES>().0, head_size.is_multiple_of(LANES));
        if E::PAIRS && head_size.is_multiple_of(2 * LANES) {
            return load_key_pairs(s, self.tile_bytes(first_key, false), head_size, keys);
        }
        for (chunk, keys) in keys.as_chunks_mut::<{ LANES * LANES }>().0.iter_mut().enumerate() {
            let mut rows = [s.splat(0.0); LANES];
            for key in 0..LANES {
                rows[key] = if whole {
                    E::load(s, &lines[key * (head_size / LANES) + chunk])
                } else {
                    E::load(s, &padded_chunk(&tile[key * head_size..][..head_size], chunk))
                };
            }
            s.transpose(&mut rows);
            let keys = keys.as_chunks_mut::<LANES>().0;
            for element in 0..LANES {
                s.store(rows[element], &mut keys[element]);
            }
        }
    }

    /// Values of one tile as `[key][padded head]`.
    #[inline(always)]
    fn load_values<S: Simd, E: Element>(&self, s: S, first_key: usize, padded: usize, values: &mut [f32]) {
        let tile = E::view(self.tile_bytes(first_key, true));
        let head_size = self.pool.shape().head_size;
        let (lines, whole) = (tile.as_chunks::<LANES>().0, head_size.is_multiple_of(LANES));
        for (index, to) in values.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let from = if whole {
                E::load(s, &lines[index])
            } else {
                let (key, chunk) = (index / (padded / LANES), index % (padded / LANES));
                E::load(s, &padded_chunk(&tile[key * head_size..][..head_size], chunk))
            };
            s.store(from, to);
        }
    }

    /// Number of the tile's keys that query `query` sees, `1..=16`.
    #[inline(always)]
    fn visible(&self, query: usize, first_key: usize) -> usize {
        (self.tile.position + query / self.group + 1 - first_key).min(KEY_TILE)
    }

    /// Scores and weights of `N` queries against the tile.
    #[inline(always)]
    fn scores<S: Simd, const N: usize>(
        &self,
        s: S,
        query: usize,
        first_key: usize,
        scaled: &[f32],
        keys: &[f32],
        running: &mut Running,
    ) {
        let head_size = self.pool.shape().head_size;
        let mut q = [scaled; N];
        for i in 0..N {
            q[i] = &scaled[(query + i) * head_size..][..head_size];
        }
        let mut acc = [s.splat(0.0); N];
        for (element, keys) in keys.as_chunks::<LANES>().0.iter().enumerate().take(head_size) {
            let keys = s.load(keys);
            unroll!(i < N, {
                acc[i] = s.fma(s.splat(q[i][element]), keys, acc[i]);
            });
        }
        unroll!(i < N, {
            let (query, score) = (query + i, acc[i]);
            let visible = self.visible(query, first_key);
            let score = s.select_first(visible, score, s.splat(f32::NEG_INFINITY));
            let (before, tile) = (running.largest[query], s.reduce_max(score));
            let largest = if tile > before { tile } else { before };
            let correction = if largest == before {
                s.splat(1.0)
            } else {
                exp(s, s.splat(before - largest)) // At the first tile this is tiny and meets sums of 0.
            };
            let weights = exp(s, s.sub(score, s.splat(largest)));
            let weights = s.select_first(visible, weights, s.splat(0.0));
            let total = s.fma(s.load(&running.totals[query]), correction, weights);
            s.store(total, &mut running.totals[query]);
            s.store(weights, &mut running.weights[query]);
            let mut lanes = [0.0; LANES];
            s.store(correction, &mut lanes);
            running.corrections[query] = lanes[0];
            running.largest[query] = largest;
        });
    }

    /// `sums = sums · correction + weights · values` for all queries from `first_query`.
    #[inline(always)]
    fn accumulate<S: Simd>(
        &self,
        s: S,
        first_query: usize,
        first_key: usize,
        padded: usize,
        values: &[f32],
        running: &mut Running,
    ) {
        let queries = running.largest.len();
        let mut query = first_query;
        while query < queries {
            // Queries of one row see the same keys; rows that see the whole tile may be taken together.
            let whole = self.visible(query, first_key) == KEY_TILE;
            if S::WIDE && whole && queries - query >= 4 {
                weigh::<S, 4>(s, query, KEY_TILE, padded, values, running);
                query += 4;
            } else {
                weigh::<S, 1>(s, query, self.visible(query, first_key), padded, values, running);
                query += 1;
            }
        }
    }
}

/// Writes a task's result.
struct Finish<'a, 'b> {
    attend: Attend<'a>,
    sum: &'a Running,
    out: SharedMut<'b, f32>,
}

impl Kernel for Finish<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { attend, sum, out } = self;
        let head_size = attend.pool.shape().head_size;
        for (query, sums) in sum.sums.chunks_exact(sum.padded).enumerate() {
            let factor = 1.0 / s.reduce_sum(s.load(&sum.totals[query]));
            let row = attend.tile.row + query / attend.group;
            let head = attend.kv_head * attend.group + query % attend.group;
            // SAFETY: a task owns its rows' columns of its KV head's queries; tasks are disjoint in (row tile, KV head).
            let out = unsafe { out.slice(row * attend.width + head * head_size, head_size) };
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * factor;
            }
        }
    }
}

/// Keys of bf16 two elements at a time: pairs are turned as they lie, and widen by a shift afterwards.
#[inline(always)]
fn load_key_pairs<S: Simd>(s: S, tile: &[u8], head_size: usize, keys: &mut [f32]) {
    let pairs = as_f32(tile).as_chunks::<LANES>().0;
    for (chunk, keys) in keys.as_chunks_mut::<{ 2 * LANES * LANES }>().0.iter_mut().enumerate() {
        let mut lines = [s.splat(0.0); LANES];
        for key in 0..LANES {
            lines[key] = s.load(&pairs[key * (head_size / (2 * LANES)) + chunk]);
        }
        s.transpose(&mut lines);
        let keys = keys.as_chunks_mut::<LANES>().0;
        for pair in 0..LANES {
            let (even, odd) = s.widen_pairs(lines[pair]);
            s.store(even, &mut keys[2 * pair]);
            s.store(odd, &mut keys[2 * pair + 1]);
        }
    }
}

#[inline(always)]
fn weigh<S: Simd, const N: usize>(
    s: S,
    query: usize,
    visible: usize,
    padded: usize,
    values: &[f32],
    running: &mut Running,
) {
    let mut column = 0;
    while padded - column >= 4 * LANES {
        weigh_columns::<S, N, 4>(s, query, visible, padded, column, values, running);
        column += 4 * LANES;
    }
    while column < padded {
        weigh_columns::<S, N, 1>(s, query, visible, padded, column, values, running);
        column += LANES;
    }
}

#[inline(always)]
fn weigh_columns<S: Simd, const N: usize, const V: usize>(
    s: S,
    query: usize,
    visible: usize,
    padded: usize,
    column: usize,
    values: &[f32],
    running: &mut Running,
) {
    let mut acc = [[s.splat(0.0); V]; N];
    unroll!(i < N, {
        let correction = s.splat(running.corrections[query + i]);
        let sums = running.sums[(query + i) * padded + column..].as_chunks::<LANES>().0;
        unroll!(v < V, {
            acc[i][v] = s.mul(s.load(&sums[v]), correction);
        });
    });
    let weights = &running.weights[query..query + N];
    for key in 0..visible {
        let line = values[key * padded + column..].as_chunks::<LANES>().0;
        let mut value = [s.splat(0.0); V];
        unroll!(v < V, {
            value[v] = s.load(&line[v]);
        });
        unroll!(i < N, {
            let weight = s.splat(weights[i][key]);
            unroll!(v < V, {
                acc[i][v] = s.fma(weight, value[v], acc[i][v]);
            });
        });
    }
    unroll!(i < N, {
        let sums = running.sums[(query + i) * padded + column..].as_chunks_mut::<LANES>().0;
        unroll!(v < V, {
            s.store(acc[i][v], &mut sums[v]);
        });
    });
}

/// Elements `16 chunk ..` of a head, zeros beyond its end.
#[inline(always)]
fn padded_chunk<T: Copy + Default>(head: &[T], chunk: usize) -> [T; LANES] {
    let rest = &head[chunk * LANES..];
    let mut padded = [T::default(); LANES];
    let count = rest.len().min(LANES);
    padded[..count].copy_from_slice(&rest[..count]);
    padded
}

#[cfg(test)]
mod tests;
