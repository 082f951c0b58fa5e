//! Rotation, and the store into the pool.

use super::harness::{HALF_STEP, Harness, near, same, text};
use half::bf16;
use kvasir_cuda::ops::{self, PoolShape, RopeTable, RotateAndStore};

pub fn table(h: &mut Harness<'_>) -> Result<(), String> {
    for (rows, half) in [(1, 1), (5, 16), (3, 70)] {
        let positions: Vec<u32> = (0..rows).map(|_| h.random.range(0, 200_000) as u32).collect();
        let frequencies: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        let table = h.output(rows * 2 * half * 4)?;
        let op = RopeTable {
            positions: &h.u32s(&positions)?,
            frequencies: &h.f32s(&frequencies)?,
            table: &table,
            rows,
            half,
            scale: 0.75,
        };
        ops::rope_table(h.device, op).map_err(text)?;
        for (index, found) in h.read_f32s(&table, rows * 2 * half)?.iter().enumerate() {
            let (row, place) = (index / (2 * half), index % (2 * half));
            let angle = f64::from(positions[row] as f32 * frequencies[place % half]);
            let expected = 0.75 * if place < half { angle.cos() } else { angle.sin() };
            near("rope table", index, f64::from(*found), expected, 1e-7)?;
        }
    }
    Ok(())
}

pub fn rotate_and_store(h: &mut Harness<'_>) -> Result<(), String> {
    for (head_count, kv_head_count, head_size, half, has_norms) in [
        (1, 1, 16, 8, false),
        (9, 3, 64, 32, false),
        (6, 2, 96, 24, true),
        (5, 1, 24, 0, true),
    ] {
        let shape = PoolShape {
            layer_count: 2,
            kv_head_count,
            head_size,
            block_size: h.random.pick(&[16, 32, 64]),
        };
        let (rows, blocks, heads) = (h.random.range(1, 12), 3, head_count + 2 * kv_head_count);
        let slots = h.random.permutation(blocks * shape.block_size)[..rows].to_vec();
        let qkv = h.random.normals(rows * heads * head_size, 2.0);
        let angles = h.random.normals(rows * half, 3.0);
        let table: Vec<f32> = (0..rows)
            .flat_map(|row| {
                let angles = &angles[row * half..(row + 1) * half];
                angles
                    .iter()
                    .map(|a| a.cos())
                    .chain(angles.iter().map(|a| a.sin()))
                    .collect::<Vec<_>>()
            })
            .collect();
        let norms = [h.random.normals(head_size, 1.0), h.random.normals(head_size, 1.0)];
        let before = h.random.rounded(blocks * shape.block_bytes() / 2, 1.0);
        let (pool, query) = (h.bf16s(&before)?, h.output(rows * head_count * head_size * 2)?);
        let norm_buffers = [h.f32s(&norms[0])?, h.f32s(&norms[1])?];
        let op = RotateAndStore {
            qkv: &h.f32s(&qkv)?,
            table: &h.f32s(&table)?,
            norms: has_norms.then_some([&norm_buffers[0], &norm_buffers[1]]),
            slots: &h.u32s(&slots)?,
            query: &query,
            pool: &pool,
            shape,
            layer: 1,
            head_count,
            rows,
            half,
            eps: 1e-6,
        };
        ops::rotate_and_store(h.device, op).map_err(text)?;
        let query = h.read_bf16s(&query, rows * head_count * head_size)?;
        let mut after = h.read_bf16s(&pool, before.len())?;
        for row in 0..rows {
            for head in 0..heads {
                let x: Vec<f64> = qkv[(row * heads + head) * head_size..][..head_size]
                    .iter()
                    .map(|x| f64::from(*x))
                    .collect();
                let part = if head < head_count {
                    0
                } else {
                    1 + usize::from(head >= head_count + kv_head_count)
                };
                let turned = expected(
                    &x,
                    (part < 2 && has_norms).then(|| &norms[part][..]),
                    &table[row * 2 * half..],
                    half,
                    part == 2,
                );
                let found: Vec<bf16> = if part == 0 {
                    query[(row * head_count + head) * head_size..][..head_size].to_vec()
                } else {
                    let place = offset(
                        &shape,
                        slots[row] as usize,
                        1,
                        part - 1,
                        (head - head_count) % kv_head_count,
                    );
                    let found = after[place..place + head_size].to_vec();
                    after[place..place + head_size].copy_from_slice(&before[place..place + head_size]);
                    found
                };
                for (i, (found, (expected, size))) in found.iter().zip(turned).enumerate() {
                    near(
                        "rotation",
                        i,
                        found.to_f64(),
                        expected,
                        expected.abs() * HALF_STEP + size * 1e-6,
                    )?;
                }
            }
        }
        same("the rest of the pool", &after, &before)?;
    }
    Ok(())
}

/// Each element's value and the size of what it was summed of.
fn expected(x: &[f64], norm: Option<&[f32]>, table: &[f32], half: usize, is_value: bool) -> Vec<(f64, f64)> {
    if is_value {
        return x.iter().map(|x| (*x, x.abs())).collect();
    }
    let factor = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(1e-6_f32)).sqrt();
    let normed: Vec<f64> = (0..x.len())
        .map(|i| norm.map_or(x[i], |norm| x[i] * factor * f64::from(norm[i])))
        .collect();
    let turn = |i: usize| {
        let (cos, sin) = (f64::from(table[i % half]), f64::from(table[half + i % half]));
        let (a, b) = (normed[i % half], normed[i % half + half]);
        let value = if i < half { a * cos - b * sin } else { b * cos + a * sin };
        (value, a.abs() + b.abs())
    };
    (0..x.len())
        .map(|i| {
            if i < 2 * half {
                turn(i)
            } else {
                (normed[i], normed[i].abs())
            }
        })
        .collect()
}

/// Where a head of a token begins in the pool, in elements.
pub fn offset(shape: &PoolShape, slot: usize, layer: usize, is_value: usize, kv_head: usize) -> usize {
    let (block, token) = (slot / shape.block_size, slot % shape.block_size);
    let head = (block * shape.layer_count + layer) * 2 * shape.kv_head_count + is_value * shape.kv_head_count + kv_head;
    (head * shape.block_size + token) * shape.head_size
}
