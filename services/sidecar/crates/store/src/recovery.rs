//! Opening a directory: what its files prove is there.
//!
//! Segments are read in the order of their ids, and records in the order of their offsets: that is the order in which they were written,
//! so a later record of a key, or a later removal, wins. A segment with a catalog was sealed; the one that was being written at a crash
//! has none and is walked, values included. A place that is no whole record is passed over in steps of 4 KiB: behind a damaged record the
//! ones that were acknowledged are still found.

use std::path::Path;
use std::sync::Arc;

use crate::aligned::AlignedBuffer;
use crate::catalog;
use crate::error::StoreError;
use crate::index::Location;
use crate::object::{Accuracy, Key};
use crate::record::{ALIGNMENT, Header, Kind};
use crate::segment::{FIRST_RECORD, Opened, Segment, id_of};
use crate::segments::{SegmentState, Tables};

/// Bytes of headers that a walk reads at once.
const WINDOW_BYTES: u64 = 1 << 20;

/// A segment's records in order.
pub(crate) type Records = Vec<(u64, Header)>;

/// Fills `tables` from the directory. Returns the highest segment id ever seen there.
pub(crate) fn recover(directory: &Path, direct: bool, tables: &mut Tables) -> Result<u32, StoreError> {
    let mut ids = Vec::new();
    let listing = std::fs::read_dir(directory).map_err(|error| StoreError::io(directory, &error))?;
    for entry in listing {
        let path = entry.map_err(|error| StoreError::io(directory, &error))?.path();
        if let Some(id) = id_of(&path, "segment") {
            ids.push(id);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "catalog-unfinished")
        {
            std::fs::remove_file(&path).map_err(|error| StoreError::io(&path, &error))?;
        }
    }
    ids.sort_unstable();
    for &id in &ids {
        recover_segment(directory, id, direct, tables)?;
    }
    Ok(ids.last().copied().unwrap_or(0))
}

fn recover_segment(directory: &Path, id: u32, direct: bool, tables: &mut Tables) -> Result<(), StoreError> {
    let (segment, mut file_bytes) = match Segment::open(directory, id, direct)? {
        Opened::Segment(segment, file_bytes) => (segment, file_bytes),
        Opened::Headless => return remove_files(directory, id),
    };
    let records = match catalog::read(directory, &segment) {
        Some(records) => records,
        None => {
            let records = walk(&segment, file_bytes);
            let end = records
                .last()
                .map_or(FIRST_RECORD, |(offset, header)| offset + header.record_bytes());
            if records.is_empty() {
                return remove_files(directory, id);
            }
            if end < file_bytes {
                segment.truncate(end)?;
                file_bytes = end;
            }
            segment.sync()?;
            // On a full disk it is walked again next time.
            let _ = catalog::write(directory, &segment, &records);
            records
        }
    };
    let state = SegmentState {
        segment: Arc::clone(&segment),
        file_bytes,
        live_bytes: 0,
        sealed: true,
    };
    tables.segments.insert(id, state);
    for (offset, header) in records {
        if offset.saturating_add(header.record_bytes()) > file_bytes {
            continue;
        }
        match header.kind {
            Kind::Value => tables.put(header.key, location(id, offset, &header)),
            Kind::Removal => {
                for key in removed_keys(&segment, offset, &header) {
                    tables.remove(key);
                }
            }
        }
    }
    Ok(())
}

/// Where a record is.
pub(crate) fn location(segment: u32, offset: u64, header: &Header) -> Location {
    Location {
        segment,
        offset,
        value_bytes: header.value_bytes,
        approximate: header.metadata.accuracy == Accuracy::Approximate,
    }
}

/// The keys of a removal; none when it is damaged: then they are blocks that may come back, which is harmless.
pub(crate) fn removed_keys(segment: &Segment, offset: u64, header: &Header) -> Vec<Key> {
    let mut buffer = AlignedBuffer::default();
    let Some((_, value)) = segment.read(offset, header.value_bytes, &mut buffer) else {
        return Vec::new();
    };
    let (keys, _) = value.as_chunks::<16>();
    keys.iter().map(|key| Key(*key)).collect()
}

/// The records of a segment: by its catalog, or by reading it.
pub(crate) fn records_of(directory: &Path, segment: &Segment, file_bytes: u64) -> Records {
    catalog::read(directory, segment).unwrap_or_else(|| walk(segment, file_bytes))
}

/// Every whole record, values compared with their digests.
fn walk(segment: &Segment, file_bytes: u64) -> Records {
    let (mut records, mut offset) = (Records::new(), FIRST_RECORD);
    let (mut window, mut window_begin, mut window_end) = (AlignedBuffer::default(), 0, 0);
    let mut buffer = AlignedBuffer::default();
    while offset + ALIGNMENT as u64 <= file_bytes {
        if offset < window_begin || offset + ALIGNMENT as u64 > window_end {
            let whole_pages = file_bytes - file_bytes % ALIGNMENT as u64;
            let bytes = WINDOW_BYTES.min(whole_pages - offset);
            if !segment.read_into(offset, window.resized(bytes as usize)) {
                break;
            }
            (window_begin, window_end) = (offset, offset + bytes);
        }
        let page = &window.bytes()[(offset - window_begin) as usize..];
        let whole = Header::decode(page, segment.salt, offset)
            .filter(|header| segment.read(offset, header.value_bytes, &mut buffer).is_some());
        offset += match whole {
            Some(header) => {
                records.push((offset, header));
                header.record_bytes()
            }
            None => ALIGNMENT as u64,
        };
    }
    records
}

/// Removes a segment's files.
pub(crate) fn remove_files(directory: &Path, id: u32) -> Result<(), StoreError> {
    // The catalog first: without its segment it would be left over for ever.
    for path in [catalog::path_of(directory, id), crate::segment::path_of(directory, id)] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(StoreError::io(&path, &error)),
            _ => {}
        }
    }
    Ok(())
}
