//! Little-endian fields, read from bytes that nobody vouches for.

use crate::error::CodecError;

/// What is left to read.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CodecError::Truncated {
            what,
            needed: count,
            left: self.0.len(),
        })?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CodecError> {
        let mut all = [0; N];
        all.copy_from_slice(self.take(N, what)?);
        Ok(all)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A finite number.
    pub(crate) fn f32(&mut self, what: &'static str) -> Result<f32, CodecError> {
        let value = f32::from_le_bytes(self.array(what)?);
        if value.is_finite() {
            Ok(value)
        } else {
            Err(CodecError::NotFinite)
        }
    }

    /// A count or size that must not be larger than `limit`.
    pub(crate) fn bounded(&mut self, what: &'static str, limit: usize) -> Result<usize, CodecError> {
        let value = self.u32(what)? as usize;
        if value > limit {
            return Err(CodecError::Field {
                what,
                value: value as u64,
                limit: limit as u64,
            });
        }
        Ok(value)
    }

    pub(crate) fn f32s(&mut self, count: usize, what: &'static str) -> Result<Vec<f32>, CodecError> {
        let bytes = self.take(count.saturating_mul(4), what)?;
        let all: Vec<f32> = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        if all.iter().all(|value| value.is_finite()) {
            Ok(all)
        } else {
            Err(CodecError::NotFinite)
        }
    }

    pub(crate) fn end(&self) -> Result<(), CodecError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(CodecError::Trailing(self.0.len()))
        }
    }
}
