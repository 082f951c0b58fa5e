//! Relocation, copies and deviation.

use super::harness::{HALF_STEP, Harness, near, same, text};
use super::rope::offset;
use half::bf16;
use kvasir_cuda::ops::{self, Copy, Deviation, KvPiece, PoolShape, Relocate};
use kvasir_kernels::{Cpu, KvDtype, KvShape, KvShards, Relocation, place};
use kvasir_sidecar::packing::joined;

fn shape(h: &mut Harness<'_>) -> PoolShape {
    PoolShape {
        layer_count: h.random.range(1, 4),
        kv_head_count: h.random.range(1, 4),
        head_size: h.random.pick(&[16, 24, 64, 128]),
        block_size: h.random.pick(&[16, 32, 64]),
    }
}

/// The CPU engine's pool with random content, and the content.
fn cpu_pool(h: &mut Harness<'_>, shape: &PoolShape, blocks: usize) -> Result<(KvShards, Vec<bf16>), String> {
    let sizes = KvShape {
        layer_count: shape.layer_count,
        kv_head_count: shape.kv_head_count,
        head_size: shape.head_size,
        block_size: shape.block_size,
        dtype: KvDtype::Bf16,
    };
    let pool = KvShards::new(sizes, 1, (blocks * shape.block_bytes()) as u64).map_err(text)?;
    let content = h.random.rounded(blocks * shape.block_bytes() / 2, 1.0);
    let bytes: Vec<u8> = content.iter().flat_map(|x| x.to_le_bytes()).collect();
    for (block, bytes) in bytes.chunks(shape.block_bytes()).enumerate() {
        pool.shards()[0]
            .scatter(
                block as u32,
                0..shape.block_size as u32,
                0..shape.layer_count as u32,
                0..shape.kv_head_count as u32,
                bytes,
            )
            .map_err(text)?;
    }
    Ok((pool, content))
}

fn all_of(pool: &KvShards, shape: &PoolShape) -> Result<Vec<bf16>, String> {
    let mut bytes = Vec::new();
    for block in 0..pool.block_count() {
        pool.shards()[0]
            .gather(
                block,
                0..shape.block_size as u32,
                0..shape.layer_count as u32,
                0..shape.kv_head_count as u32,
                &mut bytes,
            )
            .map_err(text)?;
    }
    Ok(bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|b| bf16::from_le_bytes(*b))
        .collect())
}

pub fn relocate(h: &mut Harness<'_>) -> Result<(), String> {
    for shift in [0_i64, 1, -77, 5000] {
        let shape = shape(h);
        let blocks = 6;
        let (pool, content) = cpu_pool(h, &shape, blocks)?;
        let order = h.random.permutation(blocks);
        let (from, to) = order.split_at(3);
        let token_count = h.random.range(1, shape.block_size + 9);
        let [source_start, target_start] = [0; 2].map(|_: usize| h.random.range(0, shape.block_size));
        let half = h.random.pick(&[shape.head_size / 2, shape.head_size / 4]);
        let frequencies: Vec<f32> = (0..half).map(|i| 1000f32.powf(-(i as f32) / half as f32)).collect();
        let run = Relocation {
            source_blocks: from,
            source_start,
            target_blocks: to,
            target_start,
            token_count,
            position_shift: shift,
        };
        let cpu = Cpu::new(1).map_err(text)?;
        place(&cpu, &pool, run, &frequencies).map_err(text)?;
        let slots = |table: &[u32], start: usize| -> Vec<u32> {
            let slot =
                |at: usize| table[at / shape.block_size] * shape.block_size as u32 + (at % shape.block_size) as u32;
            (start..start + token_count).map(slot).collect()
        };
        let angles: Vec<f64> = frequencies.iter().map(|f| shift as f64 * f64::from(*f)).collect();
        let turn: Vec<f32> = angles
            .iter()
            .map(|a| a.cos() as f32)
            .chain(angles.iter().map(|a| a.sin() as f32))
            .collect();
        let (buffer, turn) = (h.bf16s(&content)?, h.f32s(&turn)?);
        let op = Relocate {
            pool: &buffer,
            source: &h.u32s(&slots(from, source_start))?,
            target: &h.u32s(&slots(to, target_start))?,
            turn: (shift != 0).then_some(&turn),
            shape,
            token_count,
            half,
        };
        ops::relocate(h.device, op).map_err(text)?;
        let (found, expected) = (h.read_bf16s(&buffer, content.len())?, all_of(&pool, &shape)?);
        // The device may contract a product and a sum: where they nearly cancel, the result moves by the last place of what it is made of.
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let tolerance = if shift == 0 {
                0.0
            } else {
                expected.to_f64().abs() * 2.0 * HALF_STEP + 1e-6
            };
            near("relocated", index, found.to_f64(), expected.to_f64(), tolerance)?;
        }
    }
    Ok(())
}

pub fn copy(h: &mut Harness<'_>) -> Result<(), String> {
    let shape = shape(h);
    let (pool, content) = cpu_pool(h, &shape, 7)?;
    let (mut pieces, mut packed) = (Vec::new(), Vec::new());
    for block in &h.random.permutation(7)[..5] {
        let (token_begin, layer_begin) = (
            h.random.range(0, shape.block_size),
            h.random.range(0, shape.layer_count),
        );
        let token_count = h.random.range(1, shape.block_size - token_begin + 1);
        let layer_count = h.random.range(1, shape.layer_count - layer_begin + 1);
        let head_begin = h.random.range(0, shape.kv_head_count);
        let head_count = h.random.range(1, shape.kv_head_count - head_begin + 1);
        pieces.push(KvPiece {
            packed: packed.len() as u64 / 2,
            block: *block,
            token_begin: token_begin as u32,
            token_count: token_count as u32,
            layer_begin: layer_begin as u32,
            layer_count: layer_count as u32,
            head_begin: head_begin as u32,
            head_count: head_count as u32,
            packed_tokens: token_count as u32,
        });
        let (tokens, layers) = (
            token_begin..token_begin + token_count,
            layer_begin..layer_begin + layer_count,
        );
        pool.shards()[0]
            .gather(
                *block,
                tokens.start as u32..tokens.end as u32,
                layers.start as u32..layers.end as u32,
                head_begin as u32..(head_begin + head_count) as u32,
                &mut packed,
            )
            .map_err(text)?;
    }
    copies(h, &shape, (&pool, &content), &pieces, &packed)
}

/// Pieces of several blocks that make one stretch, as the codec takes it.
pub fn copy_joined(h: &mut Harness<'_>) -> Result<(), String> {
    let shape = shape(h);
    let (pool, content) = cpu_pool(h, &shape, 7)?;
    let counts: Vec<usize> = (0..5).map(|_| h.random.range(1, shape.block_size + 1)).collect();
    let layer_begin = h.random.range(0, shape.layer_count) as u32;
    let (mut pieces, mut packed, mut before) = (Vec::new(), Vec::new(), 0);
    for (block, count) in h.random.permutation(7).iter().zip(&counts) {
        let piece = KvPiece {
            packed: (before * shape.head_size) as u64,
            packed_tokens: counts.iter().sum::<usize>() as u32,
            block: *block,
            token_begin: 0,
            token_count: *count as u32,
            layer_begin,
            layer_count: shape.layer_count as u32 - layer_begin,
            head_begin: 0,
            head_count: shape.kv_head_count as u32,
        };
        let layers = layer_begin..shape.layer_count as u32;
        pool.shards()[0]
            .gather(*block, 0..*count as u32, layers, 0..piece.head_count, &mut packed)
            .map_err(text)?;
        pieces.push(piece);
        before += count;
    }
    let packed = joined(&packed, &counts, shape.head_size * 2);
    copies(h, &shape, (&pool, &content), &pieces, &packed)
}

/// Gathers pieces, which should give `packed`, and scatters them over other content.
fn copies(
    h: &mut Harness<'_>,
    shape: &PoolShape,
    (pool, content): (&KvShards, &[bf16]),
    pieces: &[KvPiece],
    packed: &[u8],
) -> Result<(), String> {
    let list: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_bytes(shape)).collect();
    let (from, out, list) = (h.bf16s(content)?, h.output(packed.len())?, h.bytes(&list)?);
    let (count, layers) = (pieces.len(), shape.layer_count);
    ops::kv_copy(h.device, Copy::Gather, [&from, &out, &list], shape, count, layers).map_err(text)?;
    same("gathered", &h.read(&out, packed.len())?, packed)?;

    let (target, before) = cpu_pool(h, shape, 7)?;
    let to = h.bf16s(&before)?;
    ops::kv_copy(h.device, Copy::Scatter, [&to, &out, &list], shape, count, layers).map_err(text)?;
    for piece in pieces {
        let tokens = piece.token_begin..piece.token_begin + piece.token_count;
        let layers = piece.layer_begin..piece.layer_begin + piece.layer_count;
        let mut bytes = Vec::new();
        let heads = piece.head_begin..piece.head_begin + piece.head_count;
        let (from, to) = (&pool.shards()[0], &target.shards()[0]);
        from.gather(piece.block, tokens.clone(), layers.clone(), heads.clone(), &mut bytes)
            .map_err(text)?;
        to.scatter(piece.block, tokens, layers, heads, &bytes).map_err(text)?;
    }
    same("scattered", &h.read_bf16s(&to, before.len())?, &all_of(&target, shape)?)
}

pub fn deviation(h: &mut Harness<'_>) -> Result<(), String> {
    let shape = shape(h);
    let (_, content) = cpu_pool(h, &shape, 4)?;
    let (count, layer) = (h.random.range(1, 30), shape.layer_count - 1);
    let order = h.random.permutation(4 * shape.block_size);
    let (fresh, cached) = (&order[..count], &order[count..2 * count]);
    let out = h.output(count * 4)?;
    let op = Deviation {
        pool: &h.bf16s(&content)?,
        fresh: &h.u32s(fresh)?,
        cached: &h.u32s(cached)?,
        deviation: &out,
        shape,
        layer,
        token_count: count,
    };
    ops::kv_deviation(h.device, op).map_err(text)?;
    for (token, found) in h.read_f32s(&out, count)?.iter().enumerate() {
        let mut expected = 0.0;
        for head in 0..2 * shape.kv_head_count {
            let at = |slot: u32| {
                offset(
                    &shape,
                    slot as usize,
                    layer,
                    head / shape.kv_head_count,
                    head % shape.kv_head_count,
                )
            };
            let (a, b) = (at(fresh[token]), at(cached[token]));
            for i in 0..shape.head_size {
                expected += (content[a + i].to_f64() - content[b + i].to_f64()).powi(2);
            }
        }
        near("deviation", token, f64::from(*found), expected, expected * 1e-5)?;
    }
    Ok(())
}
