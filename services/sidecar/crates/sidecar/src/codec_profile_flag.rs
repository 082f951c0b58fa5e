//! `--codec-profile`, and the file that it names.

use std::path::{Path, PathBuf};

use kvasir_codec::{Profile, ProfileId};
use kvasir_engine::KvLayout;

use crate::serve::Fatal;

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
    /// The profile that is wished, and its id, for KV of a layout. `model`: the model's directory or .gguf file, where it is here. One that was found
    /// beside the model and does not fit is left alone.
    ///
    /// # Errors
    /// One line: what is wrong with a file that was named, or in what its KV differs from the layout's.
    pub fn read(&self, model: Option<&Path>, layout: &KvLayout) -> Result<Option<(Profile, ProfileId)>, Fatal> {
        match self {
            Self::None => Ok(None),
            Self::File(path) => read_profile(path, layout).map(Some),
            Self::Auto => {
                let Some(path) = model.map(beside).filter(|path| path.exists()) else {
                    return Ok(None);
                };
                let read = read_profile(&path, layout);
                Ok(read
                    .inspect_err(|error| tracing::warn!(%error, "the codec profile beside the model cannot be used"))
                    .ok())
            }
        }
    }
}

/// Where a model's own profile lies.
fn beside(model: &Path) -> PathBuf {
    if model.is_dir() {
        model.join("codec.kvcp")
    } else {
        model.with_extension("kvcp")
    }
}

fn read_profile(path: &Path, layout: &KvLayout) -> Result<(Profile, ProfileId), Fatal> {
    let read = || -> Result<_, Fatal> {
        let (profile, id) = Profile::from_bytes(&std::fs::read(path)?)?;
        if profile.model_revision != layout.model_revision || profile.rope != layout.rope {
            return Err("it was made from another model; make one with kvasir profile codec".into());
        }
        if profile.exponents.dtype != layout.dtype {
            let (made, own) = (profile.exponents.dtype, layout.dtype);
            let message =
                format!("it was made from KV in {made:?}, this is {own:?}; make one with the same --kv-dtype");
            return Err(message.into());
        }
        Ok((profile, id))
    };
    read().map_err(|error| format!("codec profile {}: {error}", path.display()).into())
}
