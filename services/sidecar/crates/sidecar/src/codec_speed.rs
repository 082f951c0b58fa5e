//! How fast a profile's levels are here: a hint for whoever chooses among them, until transfers tell more.

use std::time::Instant;

use kvasir_codec::{
    Chunk, ChunkRange, CodecError, KvShapeOfModel, LEVEL_LOSSLESS, LEVEL_LOSSY_FROM, LEVEL_RAW, Profile,
};
use kvasir_kernels::{Isa, KeyTurns, PackedShape, packed_from_columns};

use crate::chunk_coder::{ChunkCoder, CoderError};

/// Tokens of a chunk that is coded: few enough to take milliseconds.
const TOKENS: usize = 128;
/// Of so many runs the best counts: what others on the machine take is not the codec's.
const RUNS: usize = 3;

/// Of one level, in bytes of raw KV a second of one coder; 0 where nothing is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Encoding.
    pub encode: f64,
    /// Decoding.
    pub decode: f64,
    /// Raw bytes over encoded ones, of KV that is like no text's.
    pub ratio: f64,
}

/// Codes the first layers of made-up texts at each level, so many in a call. `layers_each`: layers that each level codes together.
///
/// # Errors
/// [`CoderError`] when a level cannot be coded: the profile is of another model.
pub fn measure(
    coder: &mut dyn ChunkCoder,
    chunks_at_once: usize,
    shape: &KvShapeOfModel,
    profile: &Profile,
    layers_each: &[u32],
) -> Result<Vec<Speed>, CoderError> {
    let measured = |(level, each): (u8, &u32)| {
        if level == LEVEL_RAW {
            let [encode, decode] = [0.0; 2];
            let ratio = 1.0;
            return Ok(Speed { encode, decode, ratio });
        }
        let layers = (*each as usize).min(shape.layer_count);
        let packed = made_up(shape, profile, level, layers)?;
        let range = ChunkRange {
            token_begin: TOKENS as u32,
            token_count: TOKENS as u32,
            layers: 0..layers as u16,
        };
        let texts = vec![(range, &packed[..]); chunks_at_once];
        let (mut best, mut bytes) = ([f64::INFINITY; 2], 0);
        for _ in 0..RUNS {
            coder.hold(&texts)?;
            let began = Instant::now();
            let encoded = coder.encode(level)?;
            best[0] = best[0].min(began.elapsed().as_secs_f64());
            bytes = encoded.iter().map(|chunk| chunk.data.len()).sum();
            let began = Instant::now();
            let chunks = encoded.iter().map(|chunk| Ok(Chunk::read(&chunk.data)?.0));
            for outcome in coder.decode(&chunks.collect::<Result<Vec<_>, CodecError>>()?)? {
                outcome?;
            }
            best[1] = best[1].min(began.elapsed().as_secs_f64());
        }
        let raw = (packed.len() * chunks_at_once) as f64;
        let [encode, decode] = best.map(|seconds| raw / seconds);
        let ratio = raw / bytes as f64;
        Ok(Speed { encode, decode, ratio })
    };
    (0..).zip(layers_each).map(measured).collect()
}

/// Each channel at its mean with a little noise, as a level knows it: nothing is out of its tables.
fn made_up(shape: &KvShapeOfModel, profile: &Profile, level: u8, layers: usize) -> Result<Vec<u8>, CodecError> {
    let packed_shape = PackedShape {
        dtype: shape.dtype,
        layers,
        kv_heads: shape.kv_head_count,
        head_size: shape.head_size,
        tokens: TOKENS,
    };
    let width = packed_shape.width();
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let lossy = (level > LEVEL_LOSSLESS).then(|| &profile.levels[usize::from(level - LEVEL_LOSSY_FROM)]);
    let means: Vec<f32> = match (lossy, &profile.rotation) {
        (Some(own), Some(rotation)) if own.rotated => rotation.groups[0].mean.clone(),
        (Some(own), _) => own.groups[0].axes.iter().map(|axis| axis.base).collect(),
        _ => vec![0.0; width],
    };
    let scale = if lossy.is_some() { 0.01 } else { 1.0 };
    let mut columns = vec![0.0; width * packed_shape.stride()];
    for (column, mean) in columns.chunks_exact_mut(packed_shape.stride()).zip(&means) {
        column.iter_mut().for_each(|x| *x = mean + scale * noise());
    }
    let mut turns = KeyTurns::default();
    turns.fill(&shape.inverse_frequencies, TOKENS, TOKENS);
    let mut packed = vec![0; packed_shape.byte_len()];
    packed_from_columns(Isa::detect(), &packed_shape, &turns, &columns, &mut packed)?;
    Ok(packed)
}
