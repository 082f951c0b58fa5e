//! What is stored: a key, what is known about the value, and the value.

use crate::arena::Value;

/// A BlockHash or ChunkKey: 16 bytes that name tenant, layout and content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 16]);

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Whether a value is what the model computed, bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accuracy {
    /// It is.
    Exact,
    /// It went through a lossy codec or was blended: it never answers a look-up for an exact one.
    Approximate,
}

/// Bytes of metadata in a record.
pub(crate) const METADATA_BYTES: usize = 56;

/// What is kept beside a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// Whose.
    pub tenant_scope: [u8; 16],
    /// Fingerprint of the KV layout.
    pub layout_fingerprint: [u8; 16],
    /// Tokens of the block or chunk.
    pub token_count: u32,
    /// Blocks before this one in its chain; 0 for a chunk.
    pub position: u32,
    /// Unix time in milliseconds after which it is a miss; 0 for never.
    pub expires_at_unix_ms: u64,
    /// Exact or not.
    pub accuracy: Accuracy,
    /// Codec level of the value's bytes, as on the wire.
    pub level: u8,
}

impl Metadata {
    /// Whether its time is over.
    pub fn is_expired(&self, now_unix_ms: u64) -> bool {
        self.expires_at_unix_ms != 0 && self.expires_at_unix_ms <= now_unix_ms
    }

    /// `[tenant 16][layout 16][token_count u32][position u32][expires_at u64][accuracy u8][level u8][zero 6]`
    pub(crate) fn encode(&self, out: &mut [u8; METADATA_BYTES]) {
        out[..16].copy_from_slice(&self.tenant_scope);
        out[16..32].copy_from_slice(&self.layout_fingerprint);
        out[32..36].copy_from_slice(&self.token_count.to_le_bytes());
        out[36..40].copy_from_slice(&self.position.to_le_bytes());
        out[40..48].copy_from_slice(&self.expires_at_unix_ms.to_le_bytes());
        out[48] = u8::from(self.accuracy == Accuracy::Approximate);
        out[49] = self.level;
        out[50..].fill(0);
    }

    /// The bytes were checked by a checksum; an unknown accuracy is taken as the one that promises less.
    pub(crate) fn decode(bytes: &[u8; METADATA_BYTES]) -> Self {
        Self {
            tenant_scope: array(bytes, 0),
            layout_fingerprint: array(bytes, 16),
            token_count: u32::from_le_bytes(array(bytes, 32)),
            position: u32::from_le_bytes(array(bytes, 36)),
            expires_at_unix_ms: u64::from_le_bytes(array(bytes, 40)),
            accuracy: if bytes[48] == 0 {
                Accuracy::Exact
            } else {
                Accuracy::Approximate
            },
            level: bytes[49],
        }
    }
}

/// `N` bytes from `at`; the caller's array is long enough by its type or was checked.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// A block in memory. Whoever holds it keeps its memory; it is immutable.
#[derive(Debug)]
pub struct Object {
    /// Its name.
    pub key: Key,
    /// What is known.
    pub metadata: Metadata,
    /// XXH3-128 of the value.
    pub digest: u128,
    /// The bytes.
    pub value: Value,
}
