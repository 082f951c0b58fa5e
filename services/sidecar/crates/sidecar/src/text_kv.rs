//! The KV of one text, out of the pool's blocks into one packed piece, and back.

use std::ops::Range;

use kvasir_codec::train::Sample;
use kvasir_codec::{ChunkRange, KvShapeOfModel};
use kvasir_engine::Engine;
use kvasir_kernels::{KvShards, PoolError};

/// What the codec has to know of an engine's KV.
pub fn shape_of(engine: &Engine) -> KvShapeOfModel {
    let layout = engine.layout();
    KvShapeOfModel {
        dtype: layout.dtype,
        layer_count: layout.layer_count,
        kv_head_count: layout.kv_head_count,
        head_size: layout.head_size,
        inverse_frequencies: engine.config().rope.inverse_frequencies(),
        fingerprint: layout.fingerprint,
    }
}

/// The first tokens of a block table, of all shards.
///
/// # Errors
/// [`PoolError`] when the table is too short.
pub fn gather_text(kv: &KvShards, blocks: &[u32], tokens: usize) -> Result<Sample, PoolError> {
    let shape = *kv.shape();
    let run = shape.head_size * shape.dtype.byte_size();
    let mut packed = vec![0; tokens * kv.bytes_per_token()];
    let mut piece = Vec::new();
    for (block, begin) in blocks.iter().zip((0..tokens).step_by(shape.block_size)) {
        let count = (tokens - begin).min(shape.block_size);
        for (index, pool) in kv.shards().iter().enumerate() {
            let heads = kv.heads(index);
            piece.clear();
            let all_heads = 0..heads.len() as u32;
            pool.gather(
                *block,
                0..count as u32,
                0..shape.layer_count as u32,
                all_heads,
                &mut piece,
            )?;
            for (run_index, from) in piece.chunks_exact(count * run).enumerate() {
                let head = run_index / heads.len() * shape.kv_head_count + heads.start + run_index % heads.len();
                packed[(head * tokens + begin) * run..][..count * run].copy_from_slice(from);
            }
        }
    }
    Ok(Sample { tokens, packed })
}

/// Writes some layers of a text, packed, to where it lies.
///
/// # Errors
/// [`PoolError`] when the table is too short or the bytes are not the text's.
pub fn scatter_text(
    kv: &KvShards,
    blocks: &[u32],
    tokens: usize,
    layers: Range<u32>,
    packed: &[u8],
) -> Result<(), PoolError> {
    let shape = *kv.shape();
    let run = shape.head_size * shape.dtype.byte_size();
    let runs: Vec<&[u8]> = packed.chunks_exact(tokens * run).collect();
    let mut piece = Vec::new();
    for (block, begin) in blocks.iter().zip((0..tokens).step_by(shape.block_size)) {
        let count = (tokens - begin).min(shape.block_size);
        for (index, pool) in kv.shards().iter().enumerate() {
            let heads = kv.heads(index);
            piece.clear();
            for of_layer in runs.chunks(shape.kv_head_count) {
                for head in of_layer.get(heads.clone()).unwrap_or_default() {
                    piece.extend_from_slice(&head[begin * run..(begin + count) * run]);
                }
            }
            pool.scatter(*block, 0..count as u32, layers.clone(), 0..heads.len() as u32, &piece)?;
        }
    }
    Ok(())
}

/// A text cut into chunks of at most `tokens` tokens, all layers: each range with its packed KV.
pub fn chunks_of(shape: &KvShapeOfModel, text: &Sample, tokens: usize) -> Vec<(ChunkRange, Vec<u8>)> {
    let run = shape.head_size * shape.dtype.byte_size();
    let cut = |begin: usize| {
        let count = (text.tokens - begin).min(tokens);
        let heads = text.packed.chunks_exact(text.tokens * run);
        let packed = heads
            .flat_map(|head| &head[begin * run..(begin + count) * run])
            .copied()
            .collect();
        let range = ChunkRange {
            token_begin: begin as u32,
            token_count: count as u32,
            layers: 0..shape.layer_count as u16,
        };
        (range, packed)
    };
    (0..text.tokens).step_by(tokens.max(1)).map(cut).collect()
}

/// Puts chunks back together.
pub fn text_of(shape: &KvShapeOfModel, tokens: usize, chunks: &[(ChunkRange, Vec<u8>)]) -> Sample {
    let run = shape.head_size * shape.dtype.byte_size();
    let heads = 2 * shape.layer_count * shape.kv_head_count;
    let mut packed = vec![0; heads * tokens * run];
    for (range, part) in chunks {
        let (begin, count) = (range.token_begin as usize, range.token_count as usize);
        for (head, from) in part.chunks_exact(count * run).enumerate() {
            packed[(head * tokens + begin) * run..][..count * run].copy_from_slice(from);
        }
    }
    Sample { tokens, packed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_kernels::{KvDtype, KvShape};

    #[test]
    fn a_text_comes_out_of_its_blocks_is_cut_into_chunks_and_goes_back() {
        let shape = KvShape {
            layer_count: 3,
            kv_head_count: 2,
            head_size: 4,
            block_size: 16,
            dtype: KvDtype::Bf16,
        };
        for shards in [1, 2] {
            round_trip(&KvShards::new(shape, shards, (shape.bytes_per_token() * 16 * 8) as u64).expect("a pool"));
        }
    }

    fn round_trip(pool: &KvShards) {
        let shape = *pool.shape();
        let (tokens, blocks) = (41, [5, 2, 7]);
        let packed: Vec<u8> = (0..tokens * pool.bytes_per_token())
            .map(|i| (i * 31 % 251) as u8)
            .collect();
        scatter_text(pool, &blocks, tokens, 0..3, &packed).expect("room");
        let text = gather_text(pool, &blocks, tokens).expect("a text");
        assert_eq!(text.packed, packed);
        // Layer 1, V, head 1, token 33 lies in the third block's second token.
        let last = pool.shards().len() - 1;
        let head = pool.heads(last).len() as u32 - 1;
        let mut one = Vec::new();
        pool.shards()[last]
            .gather(7, 1..2, 1..2, head..head + 1, &mut one)
            .expect("a token");
        assert_eq!(one[8..], packed[((4 + 3) * tokens + 33) * 8..][..8]);
        let of_model = KvShapeOfModel {
            dtype: shape.dtype,
            layer_count: 3,
            kv_head_count: 2,
            head_size: 4,
            inverse_frequencies: vec![1.0],
            fingerprint: [0; 16],
        };
        let chunks = chunks_of(&of_model, &text, 16);
        assert_eq!(
            chunks.iter().map(|(range, _)| range.token_count).collect::<Vec<_>>(),
            [16, 16, 9]
        );
        assert_eq!(text_of(&of_model, tokens, &chunks).packed, packed);
        let other: Vec<u8> = packed[..packed.len() / 3].iter().map(|byte| byte ^ 1).collect();
        scatter_text(pool, &blocks, tokens, 1..2, &other).expect("room");
        let changed = gather_text(pool, &blocks, tokens).expect("a text").packed;
        let layer = packed.len() / 3;
        assert_eq!(
            (&changed[..layer], &changed[layer..2 * layer]),
            (&packed[..layer], &other[..])
        );
        assert!(scatter_text(pool, &blocks, tokens, 1..2, &other[..other.len() / 2]).is_err());
    }
}
