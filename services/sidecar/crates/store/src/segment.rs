//! One segment file.
//!
//! ```text
//! 0          4         8    16    24         32 … 4096         record, record, …
//! │ "KVSG"   │ version │ id │ salt│ checksum │ zeros           │
//! ```

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::aligned::AlignedBuffer;
use crate::error::StoreError;
use crate::object::array;
use crate::record::{ALIGNMENT, HEADER_BYTES, Header};

/// Where the first record begins.
pub(crate) const FIRST_RECORD: u64 = ALIGNMENT as u64;
const MAGIC: [u8; 4] = *b"KVSG";
const VERSION: u32 = 1;
const CHECKED_BYTES: usize = 24;

/// An open segment. Readers hold it, so its bytes stay readable after its file was removed.
#[derive(Debug)]
pub(crate) struct Segment {
    pub id: u32,
    pub salt: u64,
    pub path: PathBuf,
    file: File,
}

/// What a header at the beginning of a file says.
pub(crate) enum Opened {
    /// A segment, and the length of its file.
    Segment(Arc<Segment>, u64),
    /// No whole header: its creation was cut short, and nothing in it was acknowledged, or it is damaged.
    Headless,
}

/// Its file.
pub(crate) fn path_of(directory: &Path, id: u32) -> PathBuf {
    directory.join(format!("{id:010}.segment"))
}

/// Names of files end in the id and what they are: `0000000012.segment`.
pub(crate) fn id_of(path: &Path, extension: &str) -> Option<u32> {
    let stem = path
        .extension()
        .is_some_and(|found| found == extension)
        .then(|| path.file_stem())??;
    let text = stem.to_str().filter(|text| text.len() == 10)?;
    text.parse().ok().filter(|id| *id != 0)
}

/// Opens with direct I/O where it is wanted and the file system has it (tmpfs of older kernels has not).
fn open_file(path: &Path, create: bool, direct: bool) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(create);
    if direct {
        match options.custom_flags(libc::O_DIRECT).open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {}
            opened => return opened,
        }
        // Linux makes the file before it refuses the flag.
        options.create_new(false).create(create).custom_flags(0);
    }
    options.open(path)
}

impl Segment {
    /// Makes a new one. Its header is durable with the first group of records.
    pub fn create(directory: &Path, id: u32, salt: u64, direct: bool) -> Result<Arc<Self>, StoreError> {
        let path = path_of(directory, id);
        let file = open_file(&path, true, direct).map_err(|error| StoreError::io(&path, &error))?;
        let mut header = [0; CHECKED_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&VERSION.to_le_bytes());
        header[8..16].copy_from_slice(&u64::from(id).to_le_bytes());
        header[16..24].copy_from_slice(&salt.to_le_bytes());
        let mut buffer = AlignedBuffer::default();
        buffer.append(&header);
        buffer.append(&xxh3_64(&header).to_le_bytes());
        buffer.pad();
        let segment = Self { id, salt, path, file };
        segment.write(0, buffer.bytes())?;
        // The file's name must survive as well as its bytes.
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| StoreError::io(directory, &error))?;
        Ok(Arc::new(segment))
    }

    /// Opens the file of `id`.
    pub fn open(directory: &Path, id: u32, direct: bool) -> Result<Opened, StoreError> {
        let path = path_of(directory, id);
        let file = open_file(&path, false, direct).map_err(|error| StoreError::io(&path, &error))?;
        let file_bytes = file.metadata().map_err(|error| StoreError::io(&path, &error))?.len();
        if file_bytes < FIRST_RECORD {
            return Ok(Opened::Headless);
        }
        let mut buffer = AlignedBuffer::default();
        let header = buffer.resized(ALIGNMENT);
        if file.read_exact_at(header, 0).is_err() {
            return Ok(Opened::Headless);
        }
        let checksum = u64::from_le_bytes(array(header, CHECKED_BYTES));
        if header[..4] != MAGIC || checksum != xxh3_64(&header[..CHECKED_BYTES]) {
            return Ok(Opened::Headless);
        }
        let version = u32::from_le_bytes(array(header, 4));
        if version != VERSION {
            let message = format!("has format {version}, this program knows {VERSION}; give another directory");
            return Err(StoreError::Unusable { path, message });
        }
        if u64::from_le_bytes(array(header, 8)) != u64::from(id) {
            let message = "was renamed; give it its name back or remove it".into();
            return Err(StoreError::Unusable { path, message });
        }
        let salt = u64::from_le_bytes(array(header, 16));
        Ok(Opened::Segment(Arc::new(Self { id, salt, path, file }), file_bytes))
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|error| StoreError::io(&self.path, &error))
    }

    /// Everything written is on the medium when this returns.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.file
            .sync_data()
            .map_err(|error| StoreError::io(&self.path, &error))
    }

    /// Cuts the file off.
    pub fn truncate(&self, file_bytes: u64) -> Result<(), StoreError> {
        self.file
            .set_len(file_bytes)
            .map_err(|error| StoreError::io(&self.path, &error))
    }

    /// The record at `offset`, with a value of `value_bytes`: its header and the value's bytes in `buffer`. None when the file ends before,
    /// when the header is not whole or says another length, or when the value's digest differs.
    pub fn read<'a>(&self, offset: u64, value_bytes: u32, buffer: &'a mut AlignedBuffer) -> Option<(Header, &'a [u8])> {
        let record_bytes = crate::record::record_bytes(value_bytes as usize) as usize;
        let bytes = buffer.resized(record_bytes);
        self.file.read_exact_at(bytes, offset).ok()?;
        let header = Header::decode(bytes, self.salt, offset)?;
        let value = &buffer.bytes()[HEADER_BYTES..HEADER_BYTES + value_bytes as usize];
        let whole = header.value_bytes == value_bytes && xxhash_rust::xxh3::xxh3_128(value) == header.digest;
        whole.then_some((header, value))
    }

    /// Fills `out` from `offset`; false when the file ends before.
    pub fn read_into(&self, offset: u64, out: &mut [u8]) -> bool {
        self.file.read_exact_at(out, offset).is_ok()
    }
}
