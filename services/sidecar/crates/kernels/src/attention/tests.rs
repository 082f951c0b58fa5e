//! Attention against f64, and the promise that chunks, blocks, threads and instructions do not show in the bits.

use super::*;
use crate::batch::{BatchError, Span};
use crate::isa::Isa;
use crate::kv_pool::KvShape;
use crate::simd::tests::Noise;

const HEADS: usize = 6;

struct World {
    pool: KvShards,
    blocks: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    query: Vec<f32>,
    tokens: usize,
}

/// A pool of one sequence with scattered blocks, whose unused slots hold NaN.
fn world(head_size: usize, block_size: usize, dtype: KvDtype, tokens: usize) -> World {
    world_of(head_size, block_size, dtype, tokens, 1)
}

fn world_of(head_size: usize, block_size: usize, dtype: KvDtype, tokens: usize, shard_count: usize) -> World {
    let mut noise = Noise::new(11);
    let shape = KvShape {
        layer_count: 2,
        kv_head_count: 2,
        head_size,
        block_size,
        dtype,
    };
    let block_count = tokens.div_ceil(block_size);
    let pool = KvShards::new(
        shape,
        shard_count,
        (shape.bytes_per_token() * block_size * block_count * 2) as u64,
    )
    .unwrap();
    let blocks: Vec<u32> = (0..block_count as u32)
        .map(|index| index * 2 + (index & 1))
        .rev()
        .collect();
    let width = 2 * head_size;
    let (mut keys, mut values) = (noise.units(tokens * width), noise.units(tokens * width));
    let round = |x: &mut f32| match dtype {
        KvDtype::F32 => {}
        KvDtype::F16 => *x = half::f16::from_f32(*x).to_f32(),
        KvDtype::Bf16 => *x = half::bf16::from_f32(*x).to_f32(),
    };
    keys.iter_mut().chain(&mut values).for_each(round);
    for position in 0..block_count * block_size {
        let row = |source: &[f32]| match source.get(position * width..(position + 1) * width) {
            Some(row) => row.to_vec(),
            None => vec![f32::NAN; width],
        };
        let bytes: Vec<u8> = [row(&keys), row(&values)]
            .concat()
            .iter()
            .flat_map(|x| match dtype {
                KvDtype::F32 => x.to_le_bytes().to_vec(),
                KvDtype::F16 => half::f16::from_f32(*x).to_le_bytes().to_vec(),
                KvDtype::Bf16 => half::bf16::from_f32(*x).to_le_bytes().to_vec(),
            })
            .collect();
        let token = (position % block_size) as u32;
        let (halves, head_bytes) = (bytes.split_at(bytes.len() / 2), head_size * dtype.byte_size());
        for (shard, to) in pool.shards().iter().enumerate() {
            let heads = pool.heads(shard);
            let columns = heads.start * head_bytes..heads.end * head_bytes;
            let part = [&halves.0[columns.clone()], &halves.1[columns]].concat();
            to.scatter(
                blocks[position / block_size],
                token..token + 1,
                1..2,
                0..heads.len() as u32,
                &part,
            )
            .unwrap();
        }
    }
    let query = noise
        .units(tokens * HEADS * head_size)
        .iter()
        .map(|q| q * 3.0)
        .collect();
    World {
        pool,
        blocks,
        keys,
        values,
        query,
        tokens,
    }
}

/// Runs rows in the given chunks, each chunk its own batch.
fn run(world: &World, cpu: &Cpu, chunks: &[usize]) -> Vec<f32> {
    let width = HEADS * world.pool.shape().head_size;
    let (mut out, mut start) = (vec![0.0; world.tokens * width], 0);
    for &count in chunks {
        let span = Span {
            start_position: start,
            token_count: count,
            blocks: &world.blocks,
        };
        let batch = Batch::new(&world.pool, vec![span]).unwrap();
        let range = start * width..(start + count) * width;
        attention(
            cpu,
            &world.pool,
            1,
            &batch,
            &world.query[range.clone()],
            &mut out[range],
        )
        .unwrap();
        start += count;
    }
    assert_eq!(start, world.tokens);
    out
}

#[test]
fn agrees_with_f64_softmax_for_odd_heads_and_every_type() {
    let few: Vec<usize> = (0..45).collect();
    // Around the ends of partitions, in prompts and one by one.
    let long = vec![0, 510, 511, 512, 513, 1023, 1024, 1025];
    for (head_size, dtype, rows) in [
        (8, KvDtype::F32, &few),
        (16, KvDtype::Bf16, &few),
        (80, KvDtype::F16, &few),
        (128, KvDtype::F32, &few),
        (64, KvDtype::Bf16, &long),
    ] {
        let tokens = rows[rows.len() - 1] + 1;
        let world = world(head_size, 16, dtype, tokens);
        let chunks: &[usize] = if tokens > 45 { &[511, 1, 1, 511, 1, 1] } else { &[45] };
        let out = run(&world, &Cpu::new(2).unwrap(), chunks);
        for &row in rows {
            for head in 0..HEADS {
                let q = &world.query[(row * HEADS + head) * head_size..][..head_size];
                let of = |source: &[f32], position: usize, i: usize| {
                    f64::from(source[(position * 2 + head / 3) * head_size + i])
                };
                let scores: Vec<f64> = (0..=row)
                    .map(|p| {
                        (0..head_size)
                            .map(|i| f64::from(q[i]) * of(&world.keys, p, i))
                            .sum::<f64>()
                    })
                    .map(|score| (score / (head_size as f64).sqrt()).exp())
                    .collect();
                let total: f64 = scores.iter().sum();
                for i in 0..head_size {
                    let expected: f64 = scores
                        .iter()
                        .enumerate()
                        .map(|(p, s)| s * of(&world.values, p, i))
                        .sum();
                    let error = f64::from(out[(row * HEADS + head) * head_size + i]) - expected / total;
                    // Values are below 1; scores of up to about 20 in f32 are off by some 1e-6, and so are their weights.
                    assert!(error.abs() < 1e-5, "head size {head_size} row {row}: {error}");
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_chunks_blocks_shards_threads_or_instructions() {
    for (head_size, dtype) in [(64, KvDtype::Bf16), (24, KvDtype::F32)] {
        let tokens = 150;
        let portable = Cpu::with_isa(Isa::available().pop().unwrap(), 1).unwrap();
        let expected: Vec<u32> = run(&world(head_size, 16, dtype, tokens), &portable, &[150])
            .into_iter()
            .map(f32::to_bits)
            .collect();
        for (block_size, shard_count) in [(16, 1), (32, 2), (64, 1)] {
            let world = world_of(head_size, block_size, dtype, tokens, shard_count);
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, 2).unwrap();
                for chunks in [&[150][..], &[1; 150], &[16, 64, 70], &[33, 1, 1, 5, 100, 10]] {
                    let bits = run(&world, &cpu, chunks).into_iter().map(f32::to_bits);
                    assert!(
                        bits.eq(expected.iter().copied()),
                        "{} {block_size} {shard_count} {chunks:?}",
                        isa.name()
                    );
                }
            }
        }
    }
}

#[test]
fn partitions_side_by_side_give_the_bits_of_one_after_the_other() {
    let world = world(32, 32, KvDtype::Bf16, 1100);
    let one = run(&world, &Cpu::new(1).unwrap(), &[1100]);
    for threads in [2, 5] {
        let cpu = Cpu::new(threads).unwrap();
        for chunks in [&[1100][..], &[511, 1, 1, 510, 1, 1, 75], &[1024, 76]] {
            let bits = |out: &[f32]| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&run(&world, &cpu, chunks)) == bits(&one), "{threads} {chunks:?}");
        }
    }
}

#[test]
fn batches_that_would_race_or_read_nowhere_are_refused() {
    let world = world(16, 16, KvDtype::F32, 40);
    let span = |start_position, token_count, blocks| Span {
        start_position,
        token_count,
        blocks,
    };
    let refused = |spans| Batch::new(&world.pool, spans).err();
    assert_eq!(
        refused(vec![span(30, 3, &[0, 1])]),
        Some(BatchError::MissingBlocks {
            span: 0,
            end: 33,
            blocks: 2,
            block_size: 16
        })
    );
    assert_eq!(
        refused(vec![span(0, 1, &[0]), span(0, 1, &[9])]),
        Some(BatchError::UnknownBlock {
            span: 1,
            block: 9,
            block_count: 6
        })
    );
    let twice = Some(BatchError::BlockWrittenTwice { block: 3 });
    assert_eq!(refused(vec![span(16, 1, &[0, 3]), span(0, 1, &[3])]), twice);
    // Shared prefixes that nobody writes are fine.
    assert_eq!(refused(vec![span(16, 1, &[3, 0]), span(16, 1, &[3, 1])]), None);
}
