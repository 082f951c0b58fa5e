//! Files as memory maps.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::LoadError;

/// The name that errors show: the last part of the path.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// Maps a file for reading.
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> Result<Mmap, LoadError> {
    let io = |source| LoadError::Io {
        file: path.display().to_string(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() == 0 {
        return Err(LoadError::malformed(
            &file_name(path),
            "the file is empty",
            "a model's weights",
        ));
    }
    // SAFETY: the map is read-only and private to this process. A file that another process truncates meanwhile would raise SIGBUS;
    // model files are written once (importers write to a temporary name and rename), and weights are copied out at load.
    unsafe { Mmap::map(&file) }.map_err(io)
}
