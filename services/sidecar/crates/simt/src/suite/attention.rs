//! Attention in all its divisions.

use super::harness::{HALF_STEP, Harness, near, same, text};
use super::rope::offset;
use half::bf16;
use kvasir_cuda::ops::PoolShape;
use kvasir_cuda::{Attend, DeviceRows, Division, StepRows, attend, partial_bytes};
use kvasir_kernels::Span;

/// Sequences over one pool, whose unwritten tokens hold nothing.
struct World {
    shape: PoolShape,
    head_count: usize,
    block_count: usize,
    /// Of positions 0.. of each sequence; sequences may share blocks.
    tables: Vec<Vec<u32>>,
    pool: Vec<bf16>,
    /// Tokens written, by slot.
    written: Vec<bool>,
}

impl World {
    /// `lengths` tokens each; the first `shared` blocks are the same in all.
    fn new(h: &mut Harness<'_>, heads: [usize; 2], head_size: usize, lengths: &[usize], shared: usize) -> Self {
        let shape = PoolShape {
            layer_count: h.random.range(1, 3),
            kv_head_count: heads[1],
            head_size,
            block_size: h.random.pick(&[16, 32, 64]),
        };
        let needed: Vec<usize> = lengths.iter().map(|length| length.div_ceil(shape.block_size)).collect();
        let block_count = shared + needed.iter().sum::<usize>() + 1;
        let mut free = h.random.permutation(block_count);
        let common = free.split_off(block_count - shared);
        let tables: Vec<Vec<u32>> = needed
            .iter()
            .map(|needed| {
                let own = free.split_off(free.len() - needed.saturating_sub(shared));
                common.iter().copied().chain(own).collect()
            })
            .collect();
        let mut written = vec![false; block_count * shape.block_size];
        for (table, length) in tables.iter().zip(lengths) {
            for position in 0..*length {
                written[slot(&shape, table, position)] = true;
            }
        }
        let pool = h.random.rounded(block_count * shape.block_bytes() / 2, 1.0);
        Self {
            shape,
            head_count: heads[0],
            block_count,
            tables,
            pool,
            written,
        }
    }

    /// The pool on the device, of which only what is written is uploaded.
    fn upload(&self, h: &Harness<'_>) -> Result<kvasir_cuda::Buffer, String> {
        let buffer = h.output(self.block_count * self.shape.block_bytes())?;
        let (shape, size) = (&self.shape, self.shape.head_size);
        for slot in (0..self.written.len()).filter(|slot| self.written[*slot]) {
            for head in 0..shape.layer_count * 2 * shape.kv_head_count {
                let (layer, part) = (head / (2 * shape.kv_head_count), head % (2 * shape.kv_head_count));
                let at = offset(
                    shape,
                    slot,
                    layer,
                    part / shape.kv_head_count,
                    part % shape.kv_head_count,
                );
                let bytes: Vec<u8> = self.pool[at..at + size].iter().flat_map(|x| x.to_ne_bytes()).collect();
                h.device.write(&buffer, at * 2, &bytes).map_err(text)?;
            }
        }
        Ok(buffer)
    }

    /// What row `position` of a sequence gets for one query head, with the size of the values it was weighed of.
    fn expected(&self, query: &[bf16], sequence: usize, position: usize, layer: usize, head: usize) -> (Vec<f64>, f64) {
        let (size, kv_head) = (
            self.shape.head_size,
            head / (self.head_count / self.shape.kv_head_count),
        );
        let at = |key: usize, is_value| {
            offset(
                &self.shape,
                slot(&self.shape, &self.tables[sequence], key),
                layer,
                is_value,
                kv_head,
            )
        };
        let dot = |a: &[bf16], b: &[bf16]| a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>();
        let scores: Vec<f64> = (0..=position)
            .map(|key| dot(query, &self.pool[at(key, 0)..][..size]) / (size as f64).sqrt())
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let (mut out, mut magnitude) = (vec![0.0; size], 0.0_f64);
        for (key, weight) in weights.iter().enumerate() {
            for (out, value) in out.iter_mut().zip(&self.pool[at(key, 1)..]) {
                *out += weight / total * value.to_f64();
                magnitude = magnitude.max(value.to_f64().abs());
            }
        }
        (out, magnitude)
    }

    /// Runs attention of one layer.
    fn run(
        &self,
        h: &Harness<'_>,
        plan: &StepRows,
        partition: usize,
        query: &[bf16],
        layer: usize,
    ) -> Result<Vec<bf16>, String> {
        let memory = h.output(4 * DeviceRows::words(plan, &[]))?;
        let rows = DeviceRows::upload(h.device, &memory, plan, &[]).map_err(text)?;
        let [sums, stats] = partial_bytes(plan, self.head_count, self.shape.head_size);
        let partials = [h.output(sums)?, h.output(stats)?];
        let out = h.output(query.len() * 2)?;
        let op = Attend {
            query: &h.bf16s(query)?,
            pool: &self.upload(h)?,
            out: &out,
            partials: (partition > 0).then_some([&partials[0], &partials[1]]),
            shape: self.shape,
            layer,
            head_count: self.head_count,
            partition,
        };
        attend(h.device, plan, &rows, &op).map_err(text)?;
        h.read_bf16s(&out, query.len())
    }

    /// Compares rows, given as (sequence, position), with f64.
    fn check(&self, found: &[bf16], query: &[bf16], rows: &[(usize, usize)], layer: usize) -> Result<(), String> {
        let size = self.shape.head_size;
        for (row, (sequence, position)) in rows.iter().enumerate() {
            for head in 0..self.head_count {
                let at = (row * self.head_count + head) * size;
                let (expected, magnitude) = self.expected(&query[at..at + size], *sequence, *position, layer, head);
                for (i, expected) in expected.iter().enumerate() {
                    // Weights round to bf16 before they meet the values, and the result does.
                    let tolerance = magnitude * (HALF_STEP + 1e-4) + expected.abs() * HALF_STEP;
                    near(
                        &format!("row {row} head {head}"),
                        i,
                        found[at + i].to_f64(),
                        *expected,
                        tolerance,
                    )?;
                }
            }
        }
        Ok(())
    }
}

fn slot(shape: &PoolShape, table: &[u32], position: usize) -> usize {
    table[position / shape.block_size] as usize * shape.block_size + position % shape.block_size
}

/// `(first position, tokens)` of each sequence, as spans and as rows.
fn spans<'a>(world: &'a World, parts: &[(usize, usize)]) -> (Vec<Span<'a>>, Vec<(usize, usize)>) {
    let spans = parts
        .iter()
        .zip(&world.tables)
        .map(|((start_position, token_count), table)| Span {
            start_position: *start_position,
            token_count: *token_count,
            blocks: table,
        });
    let rows = parts
        .iter()
        .enumerate()
        .flat_map(|(i, (start, count))| (*start..start + count).map(move |p| (i, p)));
    (spans.collect(), rows.collect())
}

fn run_case(
    h: &mut Harness<'_>,
    heads: [usize; 2],
    head_size: usize,
    parts: &[(usize, usize)],
    division: Division,
    deviation: f32,
) -> Result<(), String> {
    let lengths: Vec<usize> = parts.iter().map(|(start, count)| start + count).collect();
    let world = World::new(h, heads, head_size, &lengths, 0);
    let (spans, rows) = spans(&world, parts);
    let query = h.random.rounded(rows.len() * heads[0] * head_size, deviation);
    let plan = StepRows::new(&spans, world.shape.block_size, heads[0] / heads[1], division);
    let layer = world.shape.layer_count - 1;
    let found = world.run(h, &plan, division.partition, &query, layer)?;
    world.check(&found, &query, &rows, layer)
}

pub fn prompts(h: &mut Harness<'_>) -> Result<(), String> {
    run_case(h, [1, 1], 16, &[(0, 17)], Division::FAST, 1.0)?;
    run_case(h, [3, 1], 64, &[(0, 6), (63, 8), (5, 30)], Division::FAST, 1.0)?;
    run_case(h, [4, 2], 32, &[(0, 65), (100, 9)], Division::FAST, 2.0)?;
    run_case(h, [2, 2], 96, &[(30, 20)], Division::FAST, 1.0)?;
    run_case(h, [4, 1], 128, &[(1, 40)], Division::FAST, 1.0)?;
    run_case(h, [2, 1], 256, &[(50, 20)], Division::FAST, 1.0)
}

pub fn decode(h: &mut Harness<'_>) -> Result<(), String> {
    let division = Division {
        partition: 64,
        shares_prefixes: false,
    };
    run_case(h, [1, 1], 16, &[(0, 1)], division, 1.0)?;
    run_case(h, [9, 3], 64, &[(63, 1), (64, 1), (199, 1), (0, 1)], division, 1.0)?;
    run_case(h, [24, 1], 32, &[(70, 1), (5, 1)], division, 1.0)?;
    run_case(h, [4, 2], 96, &[(127, 1), (90, 3)], division, 1.0)?;
    run_case(h, [4, 1], 128, &[(300, 1)], Division::FAST, 1.0)?;
    run_case(h, [3, 1], 256, &[(129, 1), (64, 2)], division, 1.0)?;
    run_case(h, [2, 1], 64, &[(150, 1), (10, 2)], Division::DETERMINISTIC, 1.0)
}

/// Rows at positions in any order, as when chosen tokens of a prompt are computed anew among cached ones.
pub fn arbitrary_positions(h: &mut Harness<'_>) -> Result<(), String> {
    let (heads, head_size, length) = ([4, 2], 64, 140);
    let world = World::new(h, heads, head_size, &[length], 0);
    let positions = h.random.permutation(length)[..41].to_vec();
    let rows: Vec<(usize, usize)> = positions.iter().map(|position| (0, *position as usize)).collect();
    let whole = [Span {
        start_position: 0,
        token_count: rows.len(),
        blocks: &world.tables[0],
    }];
    let mut plan = StepRows::new(&whole, world.shape.block_size, 2, Division::FAST);
    plan.tables.clone_from(&world.tables[0]);
    for tile in &mut plan.row_tiles {
        let tile_rows = tile.packed_begin as usize / 2..(tile.packed_begin + tile.packed_count).div_ceil(2) as usize;
        tile.key_end = positions[tile_rows].iter().max().map_or(0, |position| position + 1);
    }
    plan.positions = positions;
    let query = h.random.rounded(rows.len() * heads[0] * head_size, 1.0);
    let found = world.run(h, &plan, 256, &query, 0)?;
    world.check(&found, &query, &rows, 0)
}

/// A row has the same bits in a prompt, alone, and beside others, when it is walked whole.
pub fn decode_is_prompt(h: &mut Harness<'_>) -> Result<(), String> {
    let (heads, size, length) = ([3, 1], 64, 150);
    let world = World::new(h, heads, size, &[length], 0);
    let query = h.random.rounded(length * heads[0] * size, 1.5);
    let run = |start: usize, count: usize| {
        let (spans, _) = spans(&world, &[(start, count)]);
        let plan = StepRows::new(&spans, world.shape.block_size, 3, Division::DETERMINISTIC);
        world.run(
            h,
            &plan,
            0,
            &query[start * heads[0] * size..(start + count) * heads[0] * size],
            0,
        )
    };
    let all = run(0, length)?;
    for (start, count) in [(0, 1), (149, 1), (64, 1), (30, 5), (77, 60)] {
        let part = &all[start * heads[0] * size..(start + count) * heads[0] * size];
        same("a row computed apart", &run(start, count)?, part)?;
    }
    Ok(())
}

/// The prefix pass changes no bit.
pub fn shared_prefix(h: &mut Harness<'_>) -> Result<(), String> {
    let heads = [4, 1];
    let lengths: Vec<usize> = (0..5).map(|_| h.random.range(260, 420)).collect();
    let world = World::new(h, heads, 32, &lengths, 4);
    let parts: Vec<(usize, usize)> = lengths.iter().map(|length| (length - 1, 1)).collect();
    let (spans, rows) = spans(&world, &parts);
    let query = h.random.rounded(rows.len() * heads[0] * 32, 1.0);
    let shared = Division {
        partition: 64,
        shares_prefixes: true,
    };
    let apart = Division {
        shares_prefixes: false,
        ..shared
    };
    let [with, without] = [shared, apart].map(|division| StepRows::new(&spans, world.shape.block_size, 4, division));
    if with.prefix_slots != world.shape.block_size * 4 / 64 {
        return Err(format!("{} partitions are shared", with.prefix_slots));
    }
    let found = world.run(h, &with, 64, &query, 0)?;
    same(
        "attention with a prefix pass",
        &found,
        &world.run(h, &without, 64, &query, 0)?,
    )?;
    world.check(&found, &query, &rows, 0)
}

/// Scores far apart: weights of one key near 1, of the others 0.
pub fn extreme_scores(h: &mut Harness<'_>) -> Result<(), String> {
    run_case(h, [2, 1], 32, &[(0, 70)], Division::FAST, 200.0)?;
    run_case(
        h,
        [2, 1],
        32,
        &[(130, 1)],
        Division {
            partition: 64,
            shares_prefixes: false,
        },
        1000.0,
    )?;
    run_case(h, [2, 1], 32, &[(20, 9)], Division::FAST, 0.0)
}
