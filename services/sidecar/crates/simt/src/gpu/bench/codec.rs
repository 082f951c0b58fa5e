//! The KV codec on chunks as frames hold them, so many in a call as a transfer gives it; the copies of encoded bytes belong to it.

use super::super::size::BLOCK;
use super::{Bench, Work};
use half::bf16;
use kvasir_codec::{
    Accuracy, Chunk, ChunkRange, CodeGroup, CodecError, KvShapeOfModel, LEVEL_LOSSLESS, LEVEL_LOSSY_FROM, Level,
    Prepared, Profile, ProfileId, Rotation, RotationGroup,
};
use kvasir_cuda::DeviceError;
use kvasir_cuda_codec::{CodingError, DeviceCodec, PackedChunk};
use kvasir_kernels::{AxisScale, KvDtype, RANS_SYMBOLS_MAX, RansTable};
use kvasir_sidecar::builtin_profile::builtin_profile;
use kvasir_sidecar::device_coder::chunks_at_once;
use kvasir_sidecar::frames::FRAME_BYTES;
use std::sync::Arc;

/// Layers of a dense level's rotation, and of all KV here.
const LAYERS: usize = 3;
/// Of the numbers that memory is filled with.
const DEVIATION: f32 = 0.5;
/// Deviations on either side of 0 that an axis has symbols for.
const REACH: f32 = 4.0;
/// One axis in so many has low bits: those of most variance have them.
const FINE_EVERY: usize = 16;

impl Bench<'_> {
    pub(super) fn codec(&self) -> Result<(), DeviceError> {
        let config = &self.size.config;
        let shape = KvShapeOfModel {
            dtype: KvDtype::Bf16,
            layer_count: LAYERS,
            kv_head_count: config.kv_head_count,
            head_size: config.head_size,
            inverse_frequencies: config.rope.inverse_frequencies(),
            fingerprint: [0; 16],
        };
        let prepared = profile(&shape).and_then(|profile| Prepared::new(profile, ProfileId([1; 16])));
        let prepared = Arc::new(prepared.map_err(|error| DeviceError::Failed(error.to_string()))?);
        let mut codec = DeviceCodec::new(shape, prepared).map_err(device_error)?;
        for (level, name, layers) in [
            (LEVEL_LOSSLESS, "lossless", 1),
            (LEVEL_LOSSY_FROM, "fast", 1),
            (LEVEL_LOSSY_FROM + 1, "dense", LAYERS),
        ] {
            self.codec_level(&mut codec, level, name, layers)?;
        }
        Ok(())
    }

    fn codec_level(&self, codec: &mut DeviceCodec, level: u8, name: &str, layers: usize) -> Result<(), DeviceError> {
        let token_bytes = layers * self.size.pool(1).block_bytes() / BLOCK;
        let tokens = (FRAME_BYTES / token_bytes / BLOCK * BLOCK).clamp(BLOCK, 2 * BLOCK);
        let count = chunks_at_once(self.device);
        let chunk = |index: usize| PackedChunk {
            range: ChunkRange {
                token_begin: ((index + 1) * tokens) as u32,
                token_count: tokens as u32,
                layers: 0..layers as u16,
            },
            offset: (index * tokens * token_bytes) as u64,
        };
        let chunks: Vec<PackedChunk> = (0..count).map(chunk).collect();
        let raw = count * tokens * token_bytes;
        let packed = self.filled(raw)?;
        let found = codec
            .encode(self.device, level, &packed, &chunks)
            .map_err(device_error)?;
        let encoded = found.into_iter().collect::<Result<Vec<_>, _>>().map_err(codec_error)?;
        let whole: Result<Vec<_>, CodecError> = encoded.iter().zip(&chunks).map(placed).collect();
        let whole = whole.map_err(codec_error)?;
        let bytes: usize = encoded.iter().map(Vec::len).sum();
        let ratio = raw as f64 / bytes as f64;
        let text = format!("{count} chunks of {tokens} tokens, {layers} of the layers, {ratio:.2}x");
        self.line(&format!("kv encode, {name}"), &text, Work::bytes(raw), || {
            codec
                .encode(self.device, level, &packed, &chunks)
                .map(drop)
                .map_err(device_error)
        })?;
        self.line(&format!("kv decode, {name}"), &text, Work::bytes(raw), || {
            let outcomes = codec.decode(self.device, &whole, &packed).map_err(device_error)?;
            outcomes
                .into_iter()
                .try_for_each(|outcome| outcome.map_err(codec_error))
        })?;
        Ok(())
    }
}

/// A chunk, and where its elements should lie.
fn placed<'a>((bytes, chunk): (&'a Vec<u8>, &PackedChunk)) -> Result<(Chunk<'a>, u64), CodecError> {
    Ok((Chunk::read(bytes)?.0, chunk.offset))
}

/// Levels for normal numbers. What they are does not show in the kernels' time, but for exceptions, of which these have as few as KV has.
fn profile(shape: &KvShapeOfModel) -> Result<Profile, CodecError> {
    let (builtin, _) = builtin_profile(shape)?;
    let (width, channels) = (builtin.width(), builtin.width() * LAYERS);
    let table = RansTable::new(&frequencies())?;
    let axis = |index: usize| {
        let shift = if index.is_multiple_of(FINE_EVERY) { 2 } else { 0 };
        let symbols = (RANS_SYMBOLS_MAX << shift) as f32;
        AxisScale {
            shift,
            offset: symbols / 2.0,
            symbol_max: symbols - 1.0,
            step: 2.0 * REACH * DEVIATION / symbols,
            base: 0.0,
            dead_zone: 0.5,
            rounding: 0.5,
            first: 0.0,
            second: 0.0,
        }
    };
    let group = |axes: usize| CodeGroup {
        axes: (0..axes).map(axis).collect(),
        tables: vec![table.clone(); axes],
    };
    let level = |name: &str, rotated: bool, groups: Vec<CodeGroup>| Level {
        name: name.into(),
        rotated,
        groups,
        accuracy: Accuracy::default(),
    };
    // A reflection: no axis is a channel, and none is longer than another.
    let reflected = |axis: usize, channel: usize| f32::from(axis == channel) - 2.0 / channels as f32;
    let basis = (0..channels * channels).map(|at| bf16::from_f32(reflected(at / channels, at % channels)).to_bits());
    Ok(Profile {
        rotation: Some(Rotation {
            layers: LAYERS,
            groups: vec![RotationGroup {
                mean: vec![0.0; channels],
                scale: vec![1.0; channels],
                basis: basis.collect(),
            }],
        }),
        levels: vec![
            level("fast", false, vec![group(width); LAYERS]),
            level("dense", true, vec![group(channels)]),
        ],
        ..builtin
    })
}

/// Of symbols around the middle one, as normal numbers have them; all of them together are 2^15.
fn frequencies() -> Vec<u16> {
    let half = RANS_SYMBOLS_MAX as f32 / 2.0;
    let weight = |symbol: usize| (-0.5 * ((symbol as f32 - half) * REACH / half).powi(2)).exp();
    let weights: Vec<f32> = (0..RANS_SYMBOLS_MAX).map(weight).collect();
    let share = (32_768 - RANS_SYMBOLS_MAX) as f32 / weights.iter().sum::<f32>();
    let mut all: Vec<u16> = weights.iter().map(|weight| 1 + (weight * share) as u16).collect();
    all[RANS_SYMBOLS_MAX / 2] += 32_768 - all.iter().sum::<u16>();
    all
}

fn device_error(error: CodingError) -> DeviceError {
    match error {
        CodingError::Device(error) => error,
        CodingError::Codec(error) => codec_error(error),
    }
}

fn codec_error(error: CodecError) -> DeviceError {
    DeviceError::Failed(error.to_string())
}
