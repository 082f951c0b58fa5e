//! One group of layers in a payload: what lay outside its tables, the entropy-coded planes, then the planes of low bits as they are.
//!
//! ```text
//! stream bytes u32   exceptions u32   exceptions of 8 bytes: token u16, axis u16, steps i32   stream   low bits, axis by axis
//! ```

use crate::bytes::Reader;
use crate::error::CodecError;
use kvasir_kernels::{
    Isa, OutOfRange, RansTable, column_stride, pack_bits, packed_bits_len, rans_decode, rans_encode, unpack_bits,
};

/// How a section's planes are coded.
#[derive(Clone, Copy)]
pub(crate) struct Coding<'a> {
    pub(crate) isa: Isa,
    /// One for each axis.
    pub(crate) tables: &'a [RansTable],
    pub(crate) tokens: usize,
}

/// Buffers between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[axes][stride]`.
    pub(crate) high: Vec<u8>,
    /// `[axes with low bits][stride]`.
    pub(crate) low: Vec<u8>,
    /// Signs and mantissas.
    pub(crate) rest: Vec<u8>,
    pub(crate) beyond: Vec<OutOfRange>,
    words: Vec<u8>,
}

impl Scratch {
    /// Makes room for the planes of a section. Bytes that are there stay.
    pub(crate) fn resize(&mut self, coding: Coding<'_>, shifts: impl Iterator<Item = u32>) {
        let stride = column_stride(coding.tokens);
        self.high.resize(coding.tables.len() * stride, 0);
        self.low.resize(shifts.filter(|shift| *shift > 0).count() * stride, 0);
    }

    /// Appends the section of the planes and `beyond`, which is empty then.
    pub(crate) fn write(
        &mut self,
        coding: Coding<'_>,
        shifts: impl Iterator<Item = u32>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let Coding { isa, tables, tokens } = coding;
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.beyond.len() as u32).to_le_bytes());
        for one in self.beyond.drain(..) {
            out.extend_from_slice(&(one.token as u16).to_le_bytes());
            out.extend_from_slice(&(one.axis as u16).to_le_bytes());
            out.extend_from_slice(&one.steps.to_le_bytes());
        }
        let begin = out.len();
        rans_encode(isa, tables, tokens, &self.high, &mut self.words, out)?;
        let length = (out.len() - begin) as u32;
        out[at..at + 4].copy_from_slice(&length.to_le_bytes());
        let lows = self.low.chunks_exact(column_stride(tokens));
        for (shift, low) in shifts.filter(|shift| *shift > 0).zip(lows) {
            pack_bits(shift, &low[..tokens], out);
        }
        Ok(())
    }

    /// Reads a section into the planes and `beyond`, whose tokens and axes exist.
    pub(crate) fn read(
        &mut self,
        coding: Coding<'_>,
        shifts: impl Iterator<Item = u32> + Clone,
        reader: &mut Reader<'_>,
    ) -> Result<(), CodecError> {
        let Coding { isa, tables, tokens } = coding;
        let stream = read_lengths(reader, tokens, tables.len(), &mut self.beyond)?;
        self.resize(coding, shifts.clone());
        rans_decode(isa, tables, tokens, stream, &mut self.words, &mut self.high)?;
        let lows = self.low.chunks_exact_mut(column_stride(tokens));
        for (shift, low) in shifts.filter(|shift| *shift > 0).zip(lows) {
            let packed = reader.take(packed_bits_len(shift, tokens), "low bits")?;
            unpack_bits(shift, packed, &mut low[..tokens]);
        }
        Ok(())
    }
}

/// Reads a section's lengths and its exceptions, whose tokens and axes exist, into `beyond`; returns the stream.
pub(crate) fn read_lengths<'a>(
    reader: &mut Reader<'a>,
    tokens: usize,
    axes: usize,
    beyond: &mut Vec<OutOfRange>,
) -> Result<&'a [u8], CodecError> {
    let (stream_bytes, count) = (reader.u32("section")? as usize, reader.u32("section")? as usize);
    let mut exceptions = Reader(reader.take(count.saturating_mul(8), "exceptions")?);
    beyond.clear();
    for _ in 0..count {
        let (token, axis) = (
            u32::from(exceptions.u16("exception")?),
            u32::from(exceptions.u16("exception")?),
        );
        let steps = i32::from_le_bytes(exceptions.array("exception")?);
        for (what, value, limit) in [("exception's token", token, tokens), ("exception's axis", axis, axes)] {
            if value as usize >= limit {
                return Err(CodecError::Field {
                    what,
                    value: value.into(),
                    limit: limit as u64 - 1,
                });
            }
        }
        beyond.push(OutOfRange { token, axis, steps });
    }
    reader.take(stream_bytes, "stream")
}
