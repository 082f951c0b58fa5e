//! The one argument of a kernel: a C struct, put together field by field.

use crate::device::Buffer;

/// Fields of a C struct in their order, each at its natural alignment.
#[derive(Debug, Clone, Default)]
pub struct Args {
    bytes: Vec<u8>,
    alignment: usize,
}

impl Args {
    /// No fields yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A pointer to the beginning of a buffer.
    pub fn buffer(self, buffer: &Buffer) -> Self {
        self.address(buffer.address())
    }

    /// A pointer that may be null.
    pub fn optional(self, buffer: Option<&Buffer>) -> Self {
        self.address(buffer.map_or(0, Buffer::address))
    }

    /// A pointer.
    pub fn address(self, address: u64) -> Self {
        self.field(&address.to_ne_bytes())
    }

    /// A `uint32_t`.
    pub fn u32(self, value: u32) -> Self {
        self.field(&value.to_ne_bytes())
    }

    /// A count or index that the kernel takes as `uint32_t`. Values beyond are cut to the largest, which no check of sizes accepts.
    pub fn count(self, value: usize) -> Self {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// A `uint64_t`.
    pub fn u64(self, value: u64) -> Self {
        self.field(&value.to_ne_bytes())
    }

    /// A `float`.
    pub fn f32(self, value: f32) -> Self {
        self.field(&value.to_ne_bytes())
    }

    /// The struct, padded to a multiple of its largest field.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len().next_multiple_of(self.alignment.max(1));
        self.bytes.resize(length, 0);
        self.bytes
    }

    fn field(mut self, bytes: &[u8]) -> Self {
        let begin = self.bytes.len().next_multiple_of(bytes.len());
        self.bytes.resize(begin, 0);
        self.bytes.extend_from_slice(bytes);
        self.alignment = self.alignment.max(bytes.len());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_c_puts_them() {
        let bytes = Args::new().u32(1).address(2).u32(3).finish();
        assert_eq!(bytes.len(), 24);
        assert_eq!((bytes[0], bytes[8], bytes[16]), (1, 2, 3));
        assert_eq!(Args::new().u32(1).f32(0.0).u32(2).finish().len(), 12);
    }
}
