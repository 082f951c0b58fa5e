//! A record: a header that is checksummed with its place, then the value.
//!
//! ```text
//! 0        4      5        8           12       16    32         88       104      112        120
//! │ "KVR1" │ kind │ zero 3 │ value_len │ zero 4 │ key │ metadata │ digest │ zero 8 │ checksum │ value … │ zeros to 4 KiB
//! ```
//!
//! The checksum is XXH3-64 of the 112 bytes before it, seeded with the segment's random salt and the record's offset: neither the rest of
//! an earlier file nor bytes that somebody put into a value pass for a record. A removal's value is a list of keys.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::object::{Key, METADATA_BYTES, Metadata, array};

/// Records and I/O begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 4096;
/// Bytes before the value.
pub(crate) const HEADER_BYTES: usize = 120;
/// Longest value: what a reader allocates at most for a length that it has not verified.
pub(crate) const VALUE_BYTES_MAX: usize = 1 << 28;

const MAGIC: [u8; 4] = *b"KVR1";
const CHECKED_BYTES: usize = HEADER_BYTES - 8;

/// What a record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Puts a value.
    Value,
    /// Takes keys away; its own key and metadata mean nothing.
    Removal,
}

/// A record without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: Kind,
    pub value_bytes: u32,
    pub key: Key,
    pub metadata: Metadata,
    /// XXH3-128 of the value.
    pub digest: u128,
}

impl Header {
    /// Bytes on disk, padding included.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.value_bytes as usize)
    }

    /// Its bytes at `offset` of the segment with `salt`.
    pub fn encode(&self, salt: u64, offset: u64) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = match self.kind {
            Kind::Value => 1,
            Kind::Removal => 2,
        };
        out[8..12].copy_from_slice(&self.value_bytes.to_le_bytes());
        out[16..32].copy_from_slice(&self.key.0);
        let mut metadata = [0; METADATA_BYTES];
        self.metadata.encode(&mut metadata);
        out[32..88].copy_from_slice(&metadata);
        out[88..104].copy_from_slice(&self.digest.to_le_bytes());
        let checksum = checksum(&out, salt, offset);
        out[CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// The header at `offset`; None when the bytes are not one that was written there, whole.
    pub fn decode(bytes: &[u8], salt: u64, offset: u64) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        if bytes[..4] != MAGIC || u64::from_le_bytes(array(bytes, CHECKED_BYTES)) != checksum(bytes, salt, offset) {
            return None;
        }
        let kind = match bytes[4] {
            1 => Kind::Value,
            2 => Kind::Removal,
            _ => return None,
        };
        let value_bytes = u32::from_le_bytes(array(bytes, 8));
        (value_bytes as usize <= VALUE_BYTES_MAX).then(|| Self {
            kind,
            value_bytes,
            key: Key(array(bytes, 16)),
            metadata: Metadata::decode(&array(bytes, 32)),
            digest: u128::from_le_bytes(array(bytes, 88)),
        })
    }
}

/// Bytes on disk of a record with such a value.
pub(crate) fn record_bytes(value_bytes: usize) -> u64 {
    (HEADER_BYTES + value_bytes).next_multiple_of(ALIGNMENT) as u64
}

fn checksum(header: &[u8; HEADER_BYTES], salt: u64, offset: u64) -> u64 {
    xxh3_64_with_seed(&header[..CHECKED_BYTES], salt ^ offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Accuracy;

    fn header() -> Header {
        Header {
            kind: Kind::Value,
            value_bytes: 5000,
            key: Key([7; 16]),
            metadata: Metadata {
                tenant_scope: [1; 16],
                layout_fingerprint: [2; 16],
                token_count: 32,
                position: 9,
                expires_at_unix_ms: 77,
                accuracy: Accuracy::Approximate,
                level: 3,
            },
            digest: 0x1234_5678_9abc_def0_0fed_cba9_8765_4321,
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let bytes = header().encode(11, 8192);
        assert_eq!(Header::decode(&bytes, 11, 8192), Some(header()));
        assert_eq!(header().record_bytes(), 8192);
    }

    #[test]
    fn every_altered_bit_and_every_other_place_is_refused() {
        let bytes = header().encode(11, 8192);
        for bit in 0..HEADER_BYTES * 8 {
            let mut altered = bytes;
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&altered, 11, 8192), None, "bit {bit}");
        }
        assert_eq!(Header::decode(&bytes, 12, 8192), None);
        assert_eq!(Header::decode(&bytes, 11, 4096), None);
        assert_eq!(Header::decode(&bytes[..HEADER_BYTES - 1], 11, 8192), None);
    }
}
