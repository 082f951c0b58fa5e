//! The files of a model under one set of operations, whatever their format.

use std::path::{Path, PathBuf};

use crate::family::StoredTensor;
use crate::gguf::GgufFile;
use crate::mapped::file_name;
use crate::safetensors::SafetensorsFile;
use crate::{LoadError, TensorType};

#[derive(Debug)]
pub(crate) enum Files {
    Gguf(GgufFile),
    Safetensors(Vec<SafetensorsFile>),
}

/// A tensor of a file.
pub(crate) struct Found<'a> {
    pub file: &'a str,
    pub name: &'a str,
    pub tensor_type: TensorType,
    /// Outermost first.
    pub shape: Vec<usize>,
    pub bytes: &'a [u8],
}

impl Files {
    /// A tensor by its name.
    pub(crate) fn find(&self, name: &str) -> Option<Found<'_>> {
        match self {
            Self::Gguf(file) => file.entries.get_key_value(name).map(|(name, entry)| Found {
                file: &file.name,
                name,
                tensor_type: entry.tensor_type,
                shape: entry.dims.iter().rev().map(|dim| *dim as usize).collect(),
                bytes: &file.map[entry.begin..entry.end],
            }),
            Self::Safetensors(files) => files.iter().find_map(|file| {
                file.entries.get_key_value(name).map(|(name, entry)| Found {
                    file: &file.name,
                    name,
                    tensor_type: entry.tensor_type,
                    shape: entry.shape.clone(),
                    bytes: &file.map[entry.begin..entry.end],
                })
            }),
        }
    }

    /// Every tensor of a layer: itself, its layer, and its name after the layer's prefix.
    pub(crate) fn layer_tensors(&self) -> impl Iterator<Item = (Found<'_>, usize, &str)> {
        let names: Vec<&str> = match self {
            Self::Gguf(file) => file.entries.keys().map(String::as_str).collect(),
            Self::Safetensors(files) => files
                .iter()
                .flat_map(|file| file.entries.keys().map(String::as_str))
                .collect(),
        };
        names.into_iter().filter_map(|name| {
            let (index, rest) = name.strip_prefix(self.layer_prefix())?.split_once('.')?;
            Some((self.find(name)?, index.parse().ok()?, rest))
        })
    }

    /// The name of a tensor of the whole model.
    pub(crate) fn model_tensor_name(&self, hugging_face: &str, gguf: &str) -> String {
        match self {
            Self::Gguf(_) => gguf.to_owned(),
            Self::Safetensors(_) => hugging_face.to_owned(),
        }
    }

    /// The name of a layer's tensor.
    pub(crate) fn layer_tensor_name(&self, index: usize, rest: &str) -> String {
        format!("{}{index}.{rest}", self.layer_prefix())
    }

    /// A layer's tensor after the prefix.
    pub(crate) fn name_of(&self, tensor: &StoredTensor) -> &'static str {
        match self {
            Self::Gguf(_) => tensor.gguf,
            Self::Safetensors(_) => tensor.hugging_face,
        }
    }

    fn layer_prefix(&self) -> &'static str {
        match self {
            Self::Gguf(_) => "blk.",
            Self::Safetensors(_) => "model.layers.",
        }
    }

    /// The files' names, for messages.
    pub(crate) fn names(&self) -> String {
        match self {
            Self::Gguf(file) => file.name.clone(),
            Self::Safetensors(files) => {
                let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
                names.join(", ")
            }
        }
    }
}

/// The one GGUF file of a directory without safetensors.
pub(crate) fn gguf_in(directory: &Path) -> Result<Option<PathBuf>, LoadError> {
    let has_safetensors = ["model.safetensors", "model.safetensors.index.json"]
        .iter()
        .any(|name| directory.join(name).exists());
    if has_safetensors {
        return Ok(None);
    }
    let io = |source| LoadError::Io {
        file: directory.display().to_string(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
    found.sort();
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop()),
        _ => {
            let names: Vec<String> = found.iter().map(|path| file_name(path)).collect();
            let expected = format!("exactly one .gguf file; name the one to load, of {}", names.join(", "));
            Err(LoadError::NotAModel {
                file: directory.display().to_string(),
                expected,
            })
        }
    }
}
