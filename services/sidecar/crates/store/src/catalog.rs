//! What a sealed segment holds, in a file of its own: opening a store reads these instead of the segments.
//!
//! ```text
//! │ "KVCT" │ version │ salt u64 │ count u64 │ entries: offset u64, header 120 │ … │ XXH3-128 of all before │
//! ```
//!
//! An entry carries the record's header as it lies in the segment, checksum and all, so it is believed as far as that one. A catalog that
//! is missing or damaged costs a walk over the segment and nothing else.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use crate::error::StoreError;
use crate::object::array;
use crate::record::{HEADER_BYTES, Header};
use crate::segment::Segment;

const MAGIC: [u8; 4] = *b"KVCT";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 24;
const ENTRY_BYTES: usize = 8 + HEADER_BYTES;
const DIGEST_BYTES: usize = 16;

/// Its file.
pub(crate) fn path_of(directory: &Path, id: u32) -> PathBuf {
    directory.join(format!("{id:010}.catalog"))
}

/// Writes the catalog of a segment whose records are durable. It appears whole or not at all.
pub(crate) fn write(directory: &Path, segment: &Segment, records: &[(u64, Header)]) -> Result<(), StoreError> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + records.len() * ENTRY_BYTES + DIGEST_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(segment.salt.to_le_bytes());
    bytes.extend((records.len() as u64).to_le_bytes());
    for (offset, header) in records {
        bytes.extend(offset.to_le_bytes());
        bytes.extend(header.encode(segment.salt, *offset));
    }
    let digest = xxh3_128(&bytes);
    bytes.extend(digest.to_le_bytes());
    let path = path_of(directory, segment.id);
    let unfinished = path.with_extension("catalog-unfinished");
    let written = File::create(&unfinished)
        .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_data()))
        .and_then(|()| std::fs::rename(&unfinished, &path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&unfinished);
        StoreError::io(&path, &error)
    })
}

/// The records of a segment, by its catalog; None when there is none that can be believed.
pub(crate) fn read(directory: &Path, segment: &Segment) -> Option<Vec<(u64, Header)>> {
    let bytes = std::fs::read(path_of(directory, segment.id)).ok()?;
    let content = bytes.len().checked_sub(DIGEST_BYTES)?;
    let count = (content.checked_sub(PREFIX_BYTES)?) / ENTRY_BYTES;
    let is_whole = content == PREFIX_BYTES + count * ENTRY_BYTES
        && bytes[..4] == MAGIC
        && u32::from_le_bytes(array(&bytes, 4)) == VERSION
        && u64::from_le_bytes(array(&bytes, 8)) == segment.salt
        && u64::from_le_bytes(array(&bytes, 16)) == count as u64
        && u128::from_le_bytes(array(&bytes, content)) == xxh3_128(&bytes[..content]);
    if !is_whole {
        return None;
    }
    let entries = bytes[PREFIX_BYTES..content].chunks_exact(ENTRY_BYTES);
    entries
        .map(|entry| {
            let offset = u64::from_le_bytes(array(entry, 0));
            Some((offset, Header::decode(&entry[8..], segment.salt, offset)?))
        })
        .collect()
}
