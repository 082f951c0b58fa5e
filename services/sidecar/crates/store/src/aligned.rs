//! A growing buffer whose bytes begin at a multiple of 4 KiB in memory, as direct I/O asks.

use crate::record::ALIGNMENT;

/// The buffer. Its length is what was appended.
#[derive(Debug, Default)]
pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
    /// Where the aligned part begins in `memory`.
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Makes room for `byte_count` bytes in all; what was appended stays.
    fn ensure(&mut self, byte_count: usize) {
        if byte_count <= self.memory.len().saturating_sub(self.start) {
            return;
        }
        let mut memory = vec![0; byte_count.next_power_of_two().max(ALIGNMENT) + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        memory[start..start + self.len].copy_from_slice(self.bytes());
        (self.memory, self.start) = (memory, start);
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub fn append(&mut self, bytes: &[u8]) {
        self.ensure(self.len + bytes.len());
        let at = self.start + self.len;
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Zeros up to the next multiple of 4 KiB.
    pub fn pad(&mut self) {
        let end = self.len.next_multiple_of(ALIGNMENT);
        self.ensure(end);
        let at = self.start;
        self.memory[at + self.len..at + end].fill(0);
        self.len = end;
    }

    /// Exactly `byte_count` bytes, with undefined content, to read into.
    pub fn resized(&mut self, byte_count: usize) -> &mut [u8] {
        self.len = 0;
        self.ensure(byte_count);
        self.len = byte_count;
        &mut self.memory[self.start..self.start + byte_count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_aligned_and_keeps_its_bytes_as_it_grows() {
        let mut buffer = AlignedBuffer::default();
        let mut expected = Vec::new();
        for round in 0..40u8 {
            buffer.append(&vec![round; 777]);
            expected.extend(vec![round; 777]);
            if round % 3 == 0 {
                buffer.pad();
                expected.resize(expected.len().next_multiple_of(ALIGNMENT), 0);
            }
            assert_eq!(buffer.bytes(), expected);
            assert_eq!(buffer.bytes().as_ptr().align_offset(ALIGNMENT), 0);
        }
    }
}
