//! The lossless level: exponents by static tables of their channel, signs and mantissas as they are.
//!
//! Per layer, for all its heads: a section of exponents, then the rest of the elements, then the three bits of f16 that are no whole byte.

use crate::bytes::Reader;
use crate::error::CodecError;
use crate::profile::ExponentTables;
use crate::section::{Coding, Scratch};
use kvasir_kernels::{
    ExponentWindows, Isa, PackedShape, RansTable, Rest, join_exponents, pack_bits, packed_bits_len, split_exponents,
    unpack_bits,
};

/// What coding a chunk needs to know.
pub(crate) struct Lossless<'a> {
    pub(crate) isa: Isa,
    pub(crate) tables: &'a ExponentTables,
    /// Symbols of each table.
    pub(crate) counts: &'a [u8],
    /// Of the chunk.
    pub(crate) shape: PackedShape,
    pub(crate) layer_begin: usize,
}

/// One layer's heads, K and V.
struct Layer<'a> {
    bases: &'a [u8],
    counts: &'a [u8],
    tables: &'a [RansTable],
}

impl<'a> Layer<'a> {
    fn windows(&self, head: usize, head_size: usize) -> ExponentWindows<'a> {
        let range = head * head_size..(head + 1) * head_size;
        ExponentWindows {
            bases: &self.bases[range.clone()],
            counts: &self.counts[range],
        }
    }
}

impl Lossless<'_> {
    fn layer(&self, index: usize) -> Result<Layer<'_>, CodecError> {
        let width = self.shape.width() / self.shape.layers;
        let range = (self.layer_begin + index) * width..(self.layer_begin + index + 1) * width;
        let ExponentTables { bases, tables, .. } = self.tables;
        match (
            bases.get(range.clone()),
            self.counts.get(range.clone()),
            tables.get(range),
        ) {
            (Some(bases), Some(counts), Some(tables)) => Ok(Layer { bases, counts, tables }),
            _ => Err(CodecError::Layout("the number of layers")),
        }
    }

    /// Elements, heads, and the bytes of a head in packed KV, symbols, rest and extra bits.
    fn sizes(&self) -> Sizes {
        let PackedShape { dtype, head_size, .. } = self.shape;
        let elements = head_size * self.shape.tokens;
        Sizes {
            heads: 2 * self.shape.kv_heads,
            bytes: elements * dtype.byte_size(),
            symbols: head_size * self.shape.stride(),
            rest: elements * dtype.rest_bytes(),
            extra: if dtype.extra_bits() > 0 { elements } else { 0 },
        }
    }

    /// Appends the layers' sections.
    pub(crate) fn encode(&self, packed: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let (shape, sizes) = (&self.shape, self.sizes());
        let mut extra = vec![0; sizes.extra * sizes.heads];
        for (index, layer) in packed.chunks_exact(sizes.bytes * sizes.heads).enumerate() {
            let own = self.layer(index)?;
            let coding = self.coding(&own);
            scratch.resize(coding, std::iter::empty());
            scratch.rest.resize(sizes.rest * sizes.heads, 0);
            scratch.beyond.clear();
            for head in 0..sizes.heads {
                let first = scratch.beyond.len();
                split_exponents(
                    self.isa,
                    shape.dtype,
                    own.windows(head, shape.head_size),
                    &layer[head * sizes.bytes..][..sizes.bytes],
                    &mut scratch.high[head * sizes.symbols..][..sizes.symbols],
                    Rest {
                        bytes: &mut scratch.rest[head * sizes.rest..][..sizes.rest],
                        extra: &mut extra[head * sizes.extra..][..sizes.extra],
                    },
                    &mut scratch.beyond,
                )?;
                for one in &mut scratch.beyond[first..] {
                    one.axis += (head * shape.head_size) as u32;
                }
            }
            scratch.write(coding, std::iter::empty(), out)?;
            out.extend_from_slice(&scratch.rest);
            pack_bits(shape.dtype.extra_bits(), &extra, out);
        }
        Ok(())
    }

    /// Fills `packed` from the layers' sections.
    pub(crate) fn decode(
        &self,
        reader: &mut Reader<'_>,
        scratch: &mut Scratch,
        packed: &mut [u8],
    ) -> Result<(), CodecError> {
        let (shape, sizes) = (&self.shape, self.sizes());
        let mut extra = vec![0; sizes.extra * sizes.heads];
        for (index, layer) in packed.chunks_exact_mut(sizes.bytes * sizes.heads).enumerate() {
            let own = self.layer(index)?;
            scratch.read(self.coding(&own), std::iter::empty(), reader)?;
            let rest = reader.take(sizes.rest * sizes.heads, "mantissas")?;
            let bits = shape.dtype.extra_bits();
            unpack_bits(
                bits,
                reader.take(packed_bits_len(bits, extra.len()), "mantissas")?,
                &mut extra,
            );
            for head in 0..sizes.heads {
                join_exponents(
                    self.isa,
                    shape.dtype,
                    own.windows(head, shape.head_size),
                    &scratch.high[head * sizes.symbols..][..sizes.symbols],
                    Rest {
                        bytes: &rest[head * sizes.rest..][..sizes.rest],
                        extra: &extra[head * sizes.extra..][..sizes.extra],
                    },
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

    fn coding<'a>(&self, layer: &Layer<'a>) -> Coding<'a> {
        Coding {
            isa: self.isa,
            tables: layer.tables,
            tokens: self.shape.tokens,
        }
    }
}

/// Of one head.
struct Sizes {
    heads: usize,
    bytes: usize,
    symbols: usize,
    rest: usize,
    extra: usize,
}
