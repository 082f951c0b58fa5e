//! Attention alone, by context: what it costs against the bytes that it must read.

use super::{Share, WeightMacs, best_seconds};
use crate::error::{EngineError, StepError};
use kvasir_kernels::{AlignedF32, Batch, Cpu, KvShape, KvShards, Roofline, Span, attention};

/// Rows of the prompt chunk that is measured.
const CHUNK: usize = 512;

/// Attention of one sequence at one context length, per layer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct AttentionMeasurement {
    /// Tokens attended to.
    pub context: usize,
    /// Bytes of keys and values of one layer.
    pub layer_bytes: usize,
    /// A decode row: microseconds a layer, and its share of the machine's memory bandwidth.
    pub decode_microseconds: f64,
    /// See [`Share::memory`].
    pub decode_memory_share: f64,
    /// The last 512 rows of a prompt (or all of a shorter one): microseconds a layer, and their share of the machine's multiply-adds.
    pub chunk_microseconds: f64,
    /// See [`Share::compute`].
    pub chunk_compute_share: f64,
}

/// Measures on a pool of its own, filled, all layers in turn so that no layer finds its keys in a cache because it just read them.
pub(super) fn measure(
    cpu: &Cpu,
    shape: KvShape,
    head_count: usize,
    context: usize,
    repetitions: usize,
    roofline: &Roofline,
) -> Result<AttentionMeasurement, StepError> {
    let blocks: Vec<u32> = (0..context.div_ceil(shape.block_size) as u32).collect();
    let pool = filled_pool(shape, blocks.len())?;
    let width = head_count * shape.head_size;
    let (mut query, mut out) = (AlignedF32::default(), AlignedF32::default());
    query.resize(CHUNK * width);
    out.resize(CHUNK * width);
    for (index, value) in query.iter_mut().enumerate() {
        *value = (index % 61) as f32 * 0.03 - 0.9;
    }
    let mut seconds = |rows: usize, layers: usize| -> Result<f64, StepError> {
        let span = Span {
            start_position: context - rows,
            token_count: rows,
            blocks: &blocks,
        };
        let batch = Batch::new(&pool, vec![span])?;
        let total = best_seconds(repetitions, || -> Result<(), StepError> {
            for layer in 0..layers {
                let (query, out) = (&query[..rows * width], &mut out[..rows * width]);
                attention(cpu, &pool, layer, &batch, query, out)?;
            }
            Ok(())
        })?;
        Ok(total / layers as f64)
    };
    let decode = seconds(1, shape.layer_count)?;
    let rows = CHUNK.min(context);
    let chunk = seconds(rows, 1)?;
    let layer_bytes = context * shape.bytes_per_token() / shape.layer_count;
    // Row `i` of the chunk sees the context before the chunk and i + 1 of its rows; each key costs two multiply-adds an element.
    let seen = rows * (context - rows) + rows * (rows + 1) / 2;
    let macs = WeightMacs {
        dense: 2 * seen * width,
        ..WeightMacs::default()
    };
    Ok(AttentionMeasurement {
        context,
        layer_bytes,
        decode_microseconds: decode * 1e6,
        decode_memory_share: Share::memory(layer_bytes, decode, roofline),
        chunk_microseconds: chunk * 1e6,
        chunk_compute_share: Share::compute(macs, chunk, roofline),
    })
}

fn filled_pool(shape: KvShape, blocks: usize) -> Result<KvShards, StepError> {
    let block_bytes = shape.bytes_per_token() * shape.block_size;
    let pool = KvShards::new(shape, 1, (block_bytes * blocks) as u64).map_err(EngineError::from);
    let pool = pool.map_err(|error| StepError::Internal(error.to_string()))?;
    // Any finite numbers: bytes 0x3c give about 0.0115 in bf16 and f32 and 1.06 in f16.
    let content = vec![0x3c; block_bytes];
    for block in 0..blocks as u32 {
        let (tokens, layers) = (0..shape.block_size as u32, 0..shape.layer_count as u32);
        pool.shards()[0]
            .scatter(block, tokens, layers, 0..shape.kv_head_count as u32, &content)
            .map_err(|error| StepError::Internal(error.to_string()))?;
    }
    Ok(pool)
}
