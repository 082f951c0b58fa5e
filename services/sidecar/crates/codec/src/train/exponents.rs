//! Tables of exponents by channel.

use super::{Sample, width_of};
use crate::codec::KvShapeOfModel;
use crate::error::CodecError;
use crate::profile::ExponentTables;
use crate::train::tables::table_of;
use kvasir_kernels::{KvDtype, RANS_SYMBOLS_MAX};

/// Added to what was counted: an exponent within the window that training never saw is still codable.
const UNSEEN: f64 = 0.02;

/// Counts exponents of every channel and keeps the 32 in a row that cover most.
pub(super) fn count(shape: &KvShapeOfModel, samples: &[Sample]) -> Result<ExponentTables, CodecError> {
    let channels = shape.layer_count * width_of(shape);
    let size = shape.dtype.byte_size();
    let mut counts = vec![0_u32; channels * 256];
    for sample in samples {
        let head_bytes = sample.tokens * shape.head_size * size;
        for (head, elements) in sample.packed.chunks_exact(head_bytes).enumerate() {
            for (index, element) in elements.chunks_exact(size).enumerate() {
                let channel = head * shape.head_size + index % shape.head_size;
                counts[channel * 256 + exponent_of(shape.dtype, element)] += 1;
            }
        }
    }
    let exponents = if shape.dtype == KvDtype::F16 { 32 } else { 256 };
    let (mut bases, mut tables) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
    for counts in counts.chunks_exact(256) {
        let covered = |base: &usize| {
            counts[*base..base + RANS_SYMBOLS_MAX]
                .iter()
                .map(|count| u64::from(*count))
                .sum::<u64>()
        };
        let base = (0..=exponents - RANS_SYMBOLS_MAX)
            .max_by_key(|base| (covered(base), *base))
            .unwrap_or(0);
        // What is never seen at the window's end costs a search step and nothing else: cut off.
        let window = &counts[base..base + RANS_SYMBOLS_MAX];
        let used = window
            .iter()
            .rposition(|count| *count > 0)
            .map_or(1, |last| (last + 2).min(RANS_SYMBOLS_MAX));
        let weights: Vec<f64> = window[..used].iter().map(|count| f64::from(*count) + UNSEEN).collect();
        bases.push(base as u8);
        tables.push(table_of(&weights)?);
    }
    Ok(ExponentTables {
        dtype: shape.dtype,
        bases,
        tables,
    })
}

fn exponent_of(dtype: KvDtype, element: &[u8]) -> usize {
    let top = u16::from_le_bytes([element[element.len() - 2], element[element.len() - 1]]);
    match dtype {
        KvDtype::F16 => usize::from(top >> 10 & 31),
        KvDtype::Bf16 | KvDtype::F32 => usize::from(top >> 7 & 255),
    }
}
