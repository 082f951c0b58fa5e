//! `--codec-profile`.

use std::path::{Path, PathBuf};

/// Where the codec profile is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CodecProfileFlag {
    /// Beside the model, where there is one.
    Auto,
    /// Nowhere.
    None,
    /// A file.
    File(PathBuf),
}

impl std::str::FromStr for CodecProfileFlag {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "none" | "" => Self::None,
            path => Self::File(path.into()),
        })
    }
}

impl CodecProfileFlag {
    /// The file, if any, for a model's directory or .gguf file.
    pub fn path(&self, model: &Path) -> Option<PathBuf> {
        let beside = if model.is_dir() {
            model.join("codec.kvcp")
        } else {
            model.with_extension("kvcp")
        };
        match self {
            Self::Auto => Some(beside).filter(|path| path.exists()),
            Self::None => None,
            Self::File(path) => Some(path.clone()),
        }
    }
}
