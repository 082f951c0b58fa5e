//! A model's files, opened and checked.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::gguf::{self, GgufFile};
use crate::mapped::file_name;
use crate::safetensors::{self, SafetensorsFile};
use crate::tensor::{LayerTensor, Tensor, TensorId, TensorType};
use crate::{LoadError, ModelConfig, gguf_config, hf_config};

/// A model: its configuration and its weights, memory-mapped. Every weight that the configuration asks for is there with its shape.
#[derive(Debug)]
pub struct ModelSource {
    config: ModelConfig,
    files: Files,
    revision: String,
    total_bytes: u64,
}

#[derive(Debug)]
enum Files {
    Gguf(GgufFile),
    Safetensors(Vec<SafetensorsFile>),
}

/// Where a weight lies.
struct Located<'a> {
    file: &'a str,
    name: String,
    tensor_type: TensorType,
    /// Outermost first.
    shape: Vec<usize>,
    bytes: &'a [u8],
}

/// Content that the revision hashes at each end of a tensor.
const REVISION_SAMPLE_BYTES: usize = 64 << 10;

impl ModelSource {
    /// Opens a directory with safetensors and config.json, a directory with exactly one `.gguf` file, or a `.gguf` file.
    ///
    /// # Errors
    /// [`LoadError`] for whatever is missing, truncated, contradictory or unsupported; nothing is read beyond headers and the pages that
    /// the revision samples.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let metadata = std::fs::metadata(path).map_err(|source| LoadError::Io {
            file: path.display().to_string(),
            source,
        })?;
        let gguf_path = if metadata.is_file() {
            Some(path.to_owned())
        } else {
            gguf_in(path)?
        };
        let (config, files) = match gguf_path {
            Some(gguf_path) => {
                if gguf_path.extension().is_none_or(|extension| extension != "gguf") {
                    let expected = "a directory of a Hugging Face model or a .gguf file".to_owned();
                    return Err(LoadError::NotAModel {
                        file: path.display().to_string(),
                        expected,
                    });
                }
                let file = gguf::open(&gguf_path)?;
                (gguf_config::read(&file)?, Files::Gguf(file))
            }
            None => (
                hf_config::read(path)?,
                Files::Safetensors(safetensors::open_directory(path)?),
            ),
        };
        let mut source = Self {
            config,
            files,
            revision: String::new(),
            total_bytes: 0,
        };
        source.verify()?;
        (source.revision, source.total_bytes) = source.fingerprint()?;
        Ok(source)
    }

    /// The model's facts.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Hex digest (128 bits) of configuration, tensor table, and the first and last 64 KiB of each tensor: two files that differ only in
    /// the middle of a large tensor would share it, everything that people do to models (other weights, types, names) changes it.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Bytes of all weights.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Checks that every weight is there with its shape.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`] or [`LoadError::Tensor`] for the first that is not.
    pub fn verify(&self) -> Result<(), LoadError> {
        TensorId::all(&self.config).try_for_each(|id| self.locate(id).map(|_| ()))
    }

    /// One weight, in Hugging Face's row order whatever the file's.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`] for the output of a tied model or a layer that does not exist.
    pub fn tensor(&self, id: TensorId) -> Result<Tensor<'_>, LoadError> {
        let Located {
            name,
            tensor_type,
            bytes,
            ..
        } = self.locate(id)?;
        let (rows, cols) = id.shape(&self.config);
        let permuted = match (&self.files, id) {
            (
                Files::Gguf(_),
                TensorId::Layer {
                    part: LayerTensor::Query,
                    ..
                },
            ) => Some(self.config.head_count),
            (
                Files::Gguf(_),
                TensorId::Layer {
                    part: LayerTensor::Key, ..
                },
            ) => Some(self.config.kv_head_count),
            _ => None,
        };
        let bytes = match permuted {
            Some(heads) => Cow::Owned(half_split_rows(bytes, rows, heads)),
            None => Cow::Borrowed(bytes),
        };
        Ok(Tensor {
            name: Cow::Owned(name),
            tensor_type,
            rows,
            cols,
            bytes,
        })
    }

    fn locate(&self, id: TensorId) -> Result<Located<'_>, LoadError> {
        let (rows, cols) = id.shape(&self.config);
        let expected = if rows == 1 { vec![cols] } else { vec![rows, cols] };
        let located = match &self.files {
            Files::Gguf(file) => {
                let name = id.gguf_name();
                file.entries.get(&name).map(|entry| Located {
                    file: &file.name,
                    tensor_type: entry.tensor_type,
                    shape: entry.dims.iter().rev().map(|dim| *dim as usize).collect(),
                    bytes: &file.map[entry.begin..entry.end],
                    name,
                })
            }
            Files::Safetensors(files) => {
                let name = id.hugging_face_name();
                files.iter().find_map(|file| {
                    file.entries.get(&name).map(|entry| Located {
                        file: &file.name,
                        tensor_type: entry.tensor_type,
                        shape: entry.shape.clone(),
                        bytes: &file.map[entry.begin..entry.end],
                        name: name.clone(),
                    })
                })
            }
        };
        let Some(located) = located else {
            let (file, tensor) = match &self.files {
                Files::Gguf(file) => (file.name.clone(), id.gguf_name()),
                Files::Safetensors(files) => {
                    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
                    (names.join(", "), id.hugging_face_name())
                }
            };
            return Err(LoadError::MissingTensor {
                file,
                tensor,
                expected: format!("{expected:?}"),
            });
        };
        if located.shape != expected {
            let found = format!("has shape {:?}", located.shape);
            return Err(LoadError::tensor(
                located.file,
                &located.name,
                found,
                format!("{expected:?} by the configuration"),
            ));
        }
        Ok(located)
    }

    fn fingerprint(&self) -> Result<(String, u64), LoadError> {
        let mut digest = Sha256::new();
        digest.update(format!("{:?}", self.config));
        let mut total = 0;
        for id in TensorId::all(&self.config) {
            let Located {
                tensor_type,
                shape,
                bytes,
                ..
            } = self.locate(id)?;
            digest.update(format!("{id:?} {tensor_type:?} {shape:?} {}", bytes.len()));
            digest.update(&bytes[..bytes.len().min(REVISION_SAMPLE_BYTES)]);
            digest.update(&bytes[bytes.len().saturating_sub(REVISION_SAMPLE_BYTES)..]);
            total += bytes.len() as u64;
        }
        let mut hex = String::with_capacity(32);
        for byte in digest.finalize().iter().take(16) {
            let _ = write!(hex, "{byte:02x}");
        }
        Ok((hex, total))
    }
}

/// llama.cpp's converter interleaves the two halves of each head's query and key rows, for rotation in neighbouring pairs: stored row
/// `2 j + s` of a head is row `s · size/2 + j` of the original. Puts them back.
fn half_split_rows(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows;
    let half = rows / heads / 2;
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for side in 0..2 {
            for pair in 0..half {
                let row = head * half * 2 + 2 * pair + side;
                out.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    out
}

/// The one GGUF file of a directory without safetensors.
fn gguf_in(directory: &Path) -> Result<Option<PathBuf>, LoadError> {
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
