//! One group of layers in a payload: what did not fit its plane, then the entropy-coded planes.
//!
//! ```text
//! stream bytes u32   exceptions u32   exceptions of 8 bytes: token u16, axis u16, steps i32   stream
//! ```

use crate::bytes::Reader;
use crate::error::CodecError;
use kvasir_kernels::{Isa, OutOfRange, RansTable, rans_decode, rans_encode};

/// Buffers between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) symbols: Vec<u8>,
    pub(crate) beyond: Vec<OutOfRange>,
    words: Vec<u8>,
}

impl Scratch {
    /// Appends the section of `symbols` and `beyond`.
    pub(crate) fn write(
        &mut self,
        isa: Isa,
        tables: &[RansTable],
        tokens: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.beyond.len() as u32).to_le_bytes());
        for one in self.beyond.drain(..) {
            out.extend_from_slice(&(one.token as u16).to_le_bytes());
            out.extend_from_slice(&(one.axis as u16).to_le_bytes());
            out.extend_from_slice(&one.steps.to_le_bytes());
        }
        let begin = out.len();
        rans_encode(isa, tables, tokens, &self.symbols, &mut self.words, out)?;
        let length = (out.len() - begin) as u32;
        out[at..at + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    /// Reads a section into `symbols` and `beyond`, whose tokens and axes exist.
    pub(crate) fn read(
        &mut self,
        isa: Isa,
        tables: &[RansTable],
        tokens: usize,
        axes: usize,
        reader: &mut Reader<'_>,
    ) -> Result<(), CodecError> {
        let (stream_bytes, count) = (reader.u32("section")? as usize, reader.u32("section")? as usize);
        let mut exceptions = Reader(reader.take(count.saturating_mul(8), "exceptions")?);
        self.beyond.clear();
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
            self.beyond.push(OutOfRange { token, axis, steps });
        }
        let stream = reader.take(stream_bytes, "stream")?;
        self.symbols.resize(tables.len() * tokens, 0);
        Ok(rans_decode(
            isa,
            tables,
            tokens,
            stream,
            &mut self.words,
            &mut self.symbols,
        )?)
    }
}
