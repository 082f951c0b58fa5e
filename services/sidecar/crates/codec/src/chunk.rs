//! A chunk's bytes: a header of fixed size, then what its level makes of the KV.
//!
//! ```text
//! 0   magic "KVCD"           4   version u16            6   level u8        7   first token u8
//! 8   profile id, 16 bytes   24  layout fingerprint, 16 bytes
//! 40  token_begin u32        44  token_count u32        48  layer_begin u16 50  layer_count u16
//! 52  payload bytes u32      56  XXH3-64 of bytes 0..56 and the payload
//! 64  payload
//! ```
//!
//! Chunks follow each other without padding; a reader hops over them by their lengths.

use crate::bytes::Reader;
use crate::error::CodecError;
use crate::profile::ProfileId;
use std::ops::Range;
use xxhash_rust::xxh3::Xxh3;

/// Bytes before the payload.
pub const CHUNK_HEADER_BYTES: usize = 64;
/// Most tokens of a chunk. Larger: fewer headers; smaller: less memory that a stranger's chunk can ask for.
pub const TOKENS_MAX: usize = 1024;
/// Elements as they are.
pub const LEVEL_RAW: u8 = 0;
/// The same bits, exponents entropy-coded.
pub const LEVEL_LOSSLESS: u8 = 1;
/// The profile's first lossy level; the others follow.
pub const LEVEL_LOSSY_FROM: u8 = 2;

const MAGIC: [u8; 4] = *b"KVCD";
const VERSION: u16 = 2;

/// How a lossy chunk says what the text's first token holds. Its KV is far from all others' (attention sinks), depends on nothing but the
/// token, and every later token attends to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstToken {
    /// It is not in this chunk.
    Absent,
    /// It is the profile's.
    Profile,
    /// Its elements lie in front of the payload.
    Stored,
}

/// Which KV a chunk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRange {
    /// Position of the first token.
    pub token_begin: u32,
    /// Tokens, 1 to [`TOKENS_MAX`].
    pub token_count: u32,
    /// Layers.
    pub layers: Range<u16>,
}

/// A chunk whose checksum holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// How it is encoded.
    pub level: u8,
    /// See there.
    pub first_token: FirstToken,
    /// Profile it was encoded with; zero for raw.
    pub profile: ProfileId,
    /// Layout of the KV.
    pub fingerprint: [u8; 16],
    /// Which KV.
    pub range: ChunkRange,
    /// What the level made of it.
    pub payload: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// Reads the chunk at the beginning of `bytes`; returns what follows it too.
    ///
    /// # Errors
    /// [`CodecError::Truncated`], [`CodecError::Magic`], [`CodecError::Field`], [`CodecError::Checksum`].
    pub fn read(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), CodecError> {
        let mut reader = Reader(bytes);
        if reader.array("chunk header")? != MAGIC || reader.u16("chunk header")? != VERSION {
            return Err(CodecError::Magic("chunk"));
        }
        let level = reader.u8("chunk header")?;
        let first_token = match reader.u8("chunk header")? {
            0 => FirstToken::Absent,
            1 => FirstToken::Profile,
            2 => FirstToken::Stored,
            value => {
                return Err(CodecError::Field {
                    what: "first token",
                    value: value.into(),
                    limit: 2,
                });
            }
        };
        let (profile, fingerprint) = (ProfileId(reader.array("profile id")?), reader.array("fingerprint")?);
        let token_begin = reader.u32("chunk header")?;
        let token_count = reader.bounded("token count", TOKENS_MAX)? as u32;
        let (layer_begin, layer_count) = (reader.u16("chunk header")?, reader.u16("chunk header")?);
        let layer_end = layer_begin.saturating_add(layer_count);
        if token_count == 0 || layer_count == 0 || token_begin.checked_add(token_count).is_none() {
            return Err(CodecError::Magic("chunk"));
        }
        let payload_bytes = reader.u32("chunk header")? as usize;
        let checksum = reader.u64("chunk header")?;
        let payload = reader.take(payload_bytes, "payload")?;
        if checksum != checksum_of(&bytes[..CHUNK_HEADER_BYTES - 8], payload) {
            return Err(CodecError::Checksum("chunk"));
        }
        let range = ChunkRange {
            token_begin,
            token_count,
            layers: layer_begin..layer_end,
        };
        Ok((
            Self {
                level,
                first_token,
                profile,
                fingerprint,
                range,
                payload,
            },
            reader.0,
        ))
    }
}

/// Writes the header of the chunk that begins at `at` in `out`, where room for it was left, over the payload behind it.
pub(crate) fn seal(out: &mut [u8], at: usize, chunk: &Chunk<'_>) -> Result<(), CodecError> {
    let payload_bytes = out.len() - at - CHUNK_HEADER_BYTES;
    let too_long = CodecError::Field {
        what: "payload",
        value: payload_bytes as u64,
        limit: u32::MAX.into(),
    };
    let (header, payload) = out[at..].split_at_mut(CHUNK_HEADER_BYTES);
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header[6] = chunk.level;
    header[7] = match chunk.first_token {
        FirstToken::Absent => 0,
        FirstToken::Profile => 1,
        FirstToken::Stored => 2,
    };
    header[8..24].copy_from_slice(&chunk.profile.0);
    header[24..40].copy_from_slice(&chunk.fingerprint);
    header[40..44].copy_from_slice(&chunk.range.token_begin.to_le_bytes());
    header[44..48].copy_from_slice(&chunk.range.token_count.to_le_bytes());
    header[48..50].copy_from_slice(&chunk.range.layers.start.to_le_bytes());
    header[50..52].copy_from_slice(&(chunk.range.layers.len() as u16).to_le_bytes());
    header[52..56].copy_from_slice(&u32::try_from(payload_bytes).map_err(|_| too_long)?.to_le_bytes());
    let checksum = checksum_of(&header[..CHUNK_HEADER_BYTES - 8], payload);
    header[56..].copy_from_slice(&checksum.to_le_bytes());
    Ok(())
}

fn checksum_of(header: &[u8], payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(header);
    hash.update(payload);
    hash.digest()
}
