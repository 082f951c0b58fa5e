//! A model's files, opened and checked.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::family::Family;
use crate::files::{Files, gguf_in};
use crate::quant::dequantize;
use crate::tensor::{LayerTensor, Tensor, TensorId, TensorType};
use crate::{LoadError, ModelConfig, gguf, gguf_config, hf_config, safetensors};

/// A model: its configuration and its weights, memory-mapped. Every weight that the configuration asks for is there with its shape.
#[derive(Debug)]
pub struct ModelSource {
    config: ModelConfig,
    family: &'static Family,
    files: Files,
    revision: String,
    total_bytes: u64,
}

/// Where a weight lies.
struct Located<'a> {
    name: String,
    tensor_type: TensorType,
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
        let (config, family, files) = match gguf_path {
            Some(gguf_path) => {
                if gguf_path.extension().is_none_or(|extension| extension != "gguf") {
                    let expected = "a directory of a Hugging Face model or a .gguf file".to_owned();
                    return Err(LoadError::NotAModel {
                        file: path.display().to_string(),
                        expected,
                    });
                }
                let file = gguf::open(&gguf_path)?;
                let (config, family) = gguf_config::read(&file)?;
                (config, family, Files::Gguf(file))
            }
            None => {
                let (config, family) = hf_config::read(path)?;
                (config, family, Files::Safetensors(safetensors::open_directory(path)?))
            }
        };
        let mut source = Self {
            config,
            family,
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

    /// Checks that every weight is there with its shape, and that layers have no others: a bias or norm that the configuration does not speak
    /// of would be left out of the sums.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`] or [`LoadError::Tensor`] for the first that is not.
    pub fn verify(&self) -> Result<(), LoadError> {
        TensorId::all(&self.config).try_for_each(|id| self.locate(id).map(|_| ()))?;
        let unknown = self
            .files
            .layer_tensors()
            .filter(|(_, index, rest)| !self.is_known(*index, rest));
        // Tables are hash maps: the smallest name, so that the message is the same each time.
        match unknown.min_by(|(left, ..), (right, ..)| left.name.cmp(right.name)) {
            None => Ok(()),
            Some((found, ..)) => {
                let expected = format!("only what {} layers of this configuration have", self.family.model_type);
                Err(LoadError::tensor(found.file, found.name, "is not known", expected))
            }
        }
    }

    fn is_known(&self, index: usize, rest: &str) -> bool {
        let mut tensors = self.family.layer.iter().copied().flatten();
        let named = tensors.find(|tensor| self.files.name_of(tensor) == rest);
        let is_in = named.is_some_and(|tensor| tensor.parts[0].is_in(&self.config.options));
        // Old files keep the frequencies, which follow from the configuration.
        (is_in && index < self.config.layer_count) || rest == "self_attn.rotary_emb.inv_freq"
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
        } = self.locate(id)?;
        let (rows, cols) = id.shape(&self.config);
        let interleaved_heads = match (&self.files, id) {
            (Files::Gguf(_), TensorId::Layer { part, .. }) if self.family.interleaved_rows => match part {
                LayerTensor::Query | LayerTensor::QueryBias => Some(self.config.head_count),
                LayerTensor::Key | LayerTensor::KeyBias => Some(self.config.kv_head_count),
                _ => None,
            },
            _ => None,
        };
        let bytes = match interleaved_heads {
            // A bias is a column.
            Some(heads) => Cow::Owned(half_split_rows(bytes, if rows == 1 { cols } else { rows }, heads)),
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

    /// A weight's type and shape (rows, cols), without its bytes.
    ///
    /// # Errors
    /// Those of [`ModelSource::tensor`].
    pub fn stored_as(&self, id: TensorId) -> Result<(TensorType, usize, usize), LoadError> {
        let (rows, cols) = id.shape(&self.config);
        Ok((self.locate(id)?.tensor_type, rows, cols))
    }

    /// A weight's values in f32, `[rows, cols]`; norms as they are multiplied with.
    ///
    /// # Errors
    /// Those of [`ModelSource::tensor`].
    pub fn values(&self, id: TensorId) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(id)?;
        let mut values = vec![0.0; tensor.rows * tensor.cols];
        dequantize(tensor.tensor_type, &tensor.bytes, &mut values);
        if let (Files::Safetensors(_), true) = (&self.files, id.is_norm()) {
            values.iter_mut().for_each(|value| *value += self.family.norm_offset);
        }
        Ok(values)
    }

    fn locate(&self, id: TensorId) -> Result<Located<'_>, LoadError> {
        let shape = |id: TensorId| id.shape(&self.config);
        let (rows, cols) = shape(id);
        let (mut first_row, mut all_rows) = (0, rows);
        let name = match id {
            TensorId::Layer { index, part } => {
                let Some(stored) = self.family.stored(part) else {
                    let expected = format!("what {} layers have", self.family.model_type);
                    return Err(LoadError::tensor(
                        &self.files.names(),
                        &format!("{part:?}"),
                        "is not known",
                        expected,
                    ));
                };
                let rows_of = |parts: &[LayerTensor]| -> usize {
                    parts
                        .iter()
                        .map(|part| shape(TensorId::Layer { index, part: *part }).0)
                        .sum()
                };
                let before = stored.parts.iter().position(|other| *other == part).unwrap_or(0);
                (first_row, all_rows) = (rows_of(&stored.parts[..before]), rows_of(stored.parts));
                self.files.layer_tensor_name(index, self.files.name_of(stored))
            }
            TensorId::Embedding => self
                .files
                .model_tensor_name("model.embed_tokens.weight", "token_embd.weight"),
            TensorId::OutputNorm => self.files.model_tensor_name("model.norm.weight", "output_norm.weight"),
            TensorId::Output => self.files.model_tensor_name("lm_head.weight", "output.weight"),
        };
        let expected = if all_rows == 1 {
            vec![cols]
        } else {
            vec![all_rows, cols]
        };
        let Some(found) = self.files.find(&name) else {
            return Err(LoadError::MissingTensor {
                file: self.files.names(),
                tensor: name,
                expected: format!("{expected:?}"),
            });
        };
        if found.shape != expected {
            let shape = format!("has shape {:?}", found.shape);
            let expected = format!("{expected:?} by the configuration");
            return Err(LoadError::tensor(found.file, &name, shape, expected));
        }
        // The shape was checked against the bytes when the file was opened.
        let row_bytes = found.bytes.len() / all_rows;
        Ok(Located {
            tensor_type: found.tensor_type,
            bytes: &found.bytes[first_row * row_bytes..(first_row + rows) * row_bytes],
            name,
        })
    }

    fn fingerprint(&self) -> Result<(String, u64), LoadError> {
        let mut digest = Sha256::new();
        digest.update(format!("{:?} {}", self.config, self.family.model_type));
        let mut total = 0;
        for id in TensorId::all(&self.config) {
            let Located { tensor_type, bytes, .. } = self.locate(id)?;
            let shape = id.shape(&self.config);
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
