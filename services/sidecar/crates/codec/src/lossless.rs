//! The lossless level: exponents by static tables of their channel, signs and mantissas as they are.
//!
//! Per layer, for all its heads: a section of exponents, then the rest of the elements.

use crate::bytes::Reader;
use crate::error::CodecError;
use crate::profile::ExponentTables;
use crate::section::Scratch;
use kvasir_kernels::{Isa, KvDtype, PackedShape, RansTable, join_exponents, split_exponents};
use std::borrow::Cow;

/// One layer's heads, K and V.
struct Heads<'a> {
    shape: PackedShape,
    bases: &'a [u8],
    tables: Cow<'a, [RansTable]>,
}

fn heads<'a>(tables: &'a ExponentTables, shape: &PackedShape, layer: usize) -> Result<Heads<'a>, CodecError> {
    let shape = PackedShape { layers: 1, ..*shape };
    let (width, planes) = (shape.width(), shape.dtype.exponent_planes());
    let range = layer * width..(layer + 1) * width;
    let bases = tables
        .bases
        .get(range.clone())
        .ok_or(CodecError::Layout("the number of layers"))?;
    let own = tables
        .tables
        .get(range)
        .ok_or(CodecError::Layout("the number of layers"))?;
    if planes == 1 {
        return Ok(Heads {
            shape,
            bases,
            tables: Cow::Borrowed(own),
        });
    }
    // Sign and two mantissa bits are evenly spread.
    let even = RansTable::new(&[4096; 8])?;
    let mut all = Vec::with_capacity(2 * width);
    for head in own.chunks(shape.head_size) {
        all.extend_from_slice(head);
        all.extend(std::iter::repeat_n(even.clone(), head.len()));
    }
    Ok(Heads {
        shape,
        bases,
        tables: Cow::Owned(all),
    })
}

/// Appends the layers' sections.
pub(crate) fn encode(
    isa: Isa,
    tables: &ExponentTables,
    shape: &PackedShape,
    layer_begin: usize,
    packed: &[u8],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let mut rest = Vec::new();
    for (index, layer) in packed.chunks_exact(packed.len() / shape.layers).enumerate() {
        let heads = heads(tables, shape, layer_begin + index)?;
        let sizes = Sizes::of(&heads.shape);
        scratch.symbols.resize(sizes.symbols * sizes.heads, 0);
        rest.resize(sizes.rest * sizes.heads, 0);
        scratch.beyond.clear();
        for head in 0..sizes.heads {
            let first = scratch.beyond.len();
            split_exponents(
                shape.dtype,
                &heads.bases[head * shape.head_size..][..shape.head_size],
                shape.tokens,
                &layer[head * sizes.bytes..][..sizes.bytes],
                &mut scratch.symbols[head * sizes.symbols..][..sizes.symbols],
                &mut rest[head * sizes.rest..][..sizes.rest],
                &mut scratch.beyond,
            )?;
            for one in &mut scratch.beyond[first..] {
                one.axis += (head * shape.head_size) as u32;
            }
        }
        // A table has not every exponent of its window: what it lacks becomes its first, and is told apart.
        for (channel, base) in heads.bases.iter().enumerate() {
            let plane = plane_of(&heads.shape, channel);
            let known = heads.tables[plane].symbol_count() as u8;
            let row = &mut scratch.symbols[plane * shape.tokens..][..shape.tokens];
            if row.iter().all(|symbol| *symbol < known) {
                continue;
            }
            for (token, symbol) in row.iter_mut().enumerate().filter(|(_, symbol)| **symbol >= known) {
                let steps = i32::from(symbol.wrapping_add(*base));
                scratch.beyond.push(kvasir_kernels::OutOfRange {
                    token: token as u32,
                    axis: channel as u32,
                    steps,
                });
                *symbol = 0;
            }
        }
        scratch.write(isa, &heads.tables, shape.tokens, out)?;
        out.extend_from_slice(&rest);
    }
    Ok(())
}

/// Fills `packed` from the layers' sections.
pub(crate) fn decode(
    isa: Isa,
    tables: &ExponentTables,
    shape: &PackedShape,
    layer_begin: usize,
    reader: &mut Reader<'_>,
    scratch: &mut Scratch,
    packed: &mut [u8],
) -> Result<(), CodecError> {
    let layer_bytes = packed.len() / shape.layers;
    for (index, layer) in packed.chunks_exact_mut(layer_bytes).enumerate() {
        let heads = heads(tables, shape, layer_begin + index)?;
        let sizes = Sizes::of(&heads.shape);
        scratch.read(isa, &heads.tables, shape.tokens, heads.bases.len(), reader)?;
        let rest = reader.take(sizes.rest * sizes.heads, "mantissas")?;
        for head in 0..sizes.heads {
            join_exponents(
                shape.dtype,
                &heads.bases[head * shape.head_size..][..shape.head_size],
                shape.tokens,
                &scratch.symbols[head * sizes.symbols..][..sizes.symbols],
                &rest[head * sizes.rest..][..sizes.rest],
                &mut layer[head * sizes.bytes..][..sizes.bytes],
            )?;
        }
        for one in &scratch.beyond {
            let (head, dim) = (one.axis as usize / shape.head_size, one.axis as usize % shape.head_size);
            let element = (head * shape.tokens + one.token as usize) * shape.head_size + dim;
            let size = shape.dtype.byte_size();
            shape
                .dtype
                .set_exponent(&mut layer[element * size..][..size], one.steps as u8);
        }
    }
    Ok(())
}

/// The plane of a channel's exponents: with f16, a head's planes of signs follow its exponents.
fn plane_of(shape: &PackedShape, channel: usize) -> usize {
    let extra = if shape.dtype == KvDtype::F16 {
        channel / shape.head_size * shape.head_size
    } else {
        0
    };
    channel + extra
}

/// Of one head.
struct Sizes {
    heads: usize,
    bytes: usize,
    symbols: usize,
    rest: usize,
}

impl Sizes {
    fn of(shape: &PackedShape) -> Self {
        let elements = shape.head_size * shape.tokens;
        Self {
            heads: 2 * shape.kv_heads,
            bytes: elements * shape.dtype.byte_size(),
            symbols: elements * shape.dtype.exponent_planes(),
            rest: elements * shape.dtype.rest_bytes(),
        }
    }
}
