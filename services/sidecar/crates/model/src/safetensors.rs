//! The safetensors container: an 8-byte header length, a JSON header, raw little-endian data.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::Deserialize;

use crate::mapped::{file_name, map_file};
use crate::{LoadError, TensorType};

/// The reference implementation's bound.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// One tensor of a file.
#[derive(Debug)]
pub(crate) struct Entry {
    pub tensor_type: TensorType,
    pub shape: Vec<usize>,
    /// In the file.
    pub begin: usize,
    pub end: usize,
}

/// A mapped file and its table.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    pub name: String,
    pub map: Mmap,
    pub entries: HashMap<String, Entry>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Opens `model.safetensors`, or every shard that `model.safetensors.index.json` names.
pub(crate) fn open_directory(directory: &Path) -> Result<Vec<SafetensorsFile>, LoadError> {
    let single = directory.join("model.safetensors");
    if single.exists() {
        return Ok(vec![open_file(&single)?]);
    }
    let index_path = directory.join("model.safetensors.index.json");
    if !index_path.exists() {
        return Err(LoadError::NotAModel {
            file: directory.display().to_string(),
            expected: "no model.safetensors, model.safetensors.index.json or .gguf file is there".into(),
        });
    }
    let name = file_name(&index_path);
    let text = std::fs::read(&index_path).map_err(|source| LoadError::Io {
        file: name.clone(),
        source,
    })?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| LoadError::malformed(&name, error.to_string(), "an object with weight_map"))?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort();
    shards.dedup();
    let mut files = Vec::with_capacity(shards.len());
    for shard in shards {
        let path = PathBuf::from(&shard);
        if path.components().count() != 1 || !shard.ends_with(".safetensors") {
            return Err(LoadError::key(
                &name,
                "weight_map",
                format!("names {shard}"),
                "a file beside it",
            ));
        }
        files.push(open_file(&directory.join(path))?);
    }
    Ok(files)
}

fn open_file(path: &Path) -> Result<SafetensorsFile, LoadError> {
    let name = file_name(path);
    let map = map_file(path)?;
    let entries = parse(&name, &map)?;
    Ok(SafetensorsFile { name, map, entries })
}

fn parse(name: &str, bytes: &[u8]) -> Result<HashMap<String, Entry>, LoadError> {
    let Some(length_bytes) = bytes.first_chunk::<8>() else {
        return Err(LoadError::malformed(
            name,
            format!("{} bytes", bytes.len()),
            "at least 8",
        ));
    };
    let header_length = u64::from_le_bytes(*length_bytes);
    let data_length = (bytes.len() as u64 - 8).checked_sub(header_length);
    let (Some(data_length), true) = (data_length, header_length <= HEADER_BYTES_MAX) else {
        let found = format!("a header of {header_length} bytes in a file of {}", bytes.len());
        return Err(LoadError::malformed(
            name,
            found,
            "a header within the file: it is truncated or not safetensors",
        ));
    };
    let data_begin = 8 + header_length as usize;
    let raw: HashMap<String, serde_json::Value> = serde_json::from_slice(&bytes[8..data_begin])
        .map_err(|error| LoadError::malformed(name, format!("header: {error}"), "a JSON object"))?;
    let mut entries = HashMap::with_capacity(raw.len());
    let mut extents = Vec::with_capacity(raw.len());
    for (tensor, value) in raw {
        if tensor == "__metadata__" {
            continue;
        }
        let raw: RawEntry = serde_json::from_value(value)
            .map_err(|error| LoadError::tensor(name, &tensor, error.to_string(), "dtype, shape and data_offsets"))?;
        let tensor_type = match raw.dtype.as_str() {
            "F32" => TensorType::F32,
            "F16" => TensorType::F16,
            "BF16" => TensorType::Bf16,
            other => {
                return Err(LoadError::unsupported(
                    name,
                    format!("tensor {tensor} of dtype {other}"),
                    "F32, F16, BF16",
                ));
            }
        };
        let [begin, end] = raw.data_offsets;
        if begin > end || end > data_length {
            let found = format!("lies at {begin}..{end}");
            return Err(LoadError::tensor(
                name,
                &tensor,
                found,
                format!("a range within 0..{data_length}: the file is truncated or damaged"),
            ));
        }
        let elements = raw
            .shape
            .iter()
            .try_fold(1u64, |product, size| product.checked_mul(*size));
        let bytes_needed = elements.and_then(|n| n.checked_mul(tensor_type.block_bytes() as u64));
        if bytes_needed != Some(end - begin) {
            let found = format!("has shape {:?} and {} bytes", raw.shape, end - begin);
            return Err(LoadError::tensor(
                name,
                &tensor,
                found,
                "as many bytes as its shape needs",
            ));
        }
        extents.push((begin, end));
        let shape = raw.shape.iter().map(|size| *size as usize).collect();
        let (begin, end) = (data_begin + begin as usize, data_begin + end as usize);
        entries.insert(
            tensor,
            Entry {
                tensor_type,
                shape,
                begin,
                end,
            },
        );
    }
    extents.sort_unstable();
    if let Some(pair) = extents.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        let found = format!(
            "tensors at {}..{} and {}..{} overlap",
            pair[0].0, pair[0].1, pair[1].0, pair[1].1
        );
        return Err(LoadError::malformed(name, found, "each byte in one tensor"));
    }
    Ok(entries)
}
