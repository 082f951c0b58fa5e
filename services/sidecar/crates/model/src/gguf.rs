//! The GGUF container, versions 2 and 3, little endian: key-value metadata, a tensor table, aligned data.

use std::collections::HashMap;
use std::path::Path;

use memmap2::Mmap;

use crate::mapped::{file_name, map_file};
use crate::{LoadError, TensorType};

const ARRAY_DEPTH_MAX: usize = 4;
const STRING_BYTES_MAX: u64 = 1 << 24;
const SUPPORTED_TYPES: &str = "F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0";

/// A metadata value. Arrays are walked and checked, but only their length is kept: tokenizers are read elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum GgufValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array { len: u64 },
}

/// One tensor of the table; `dims` innermost first, as stored.
#[derive(Debug)]
pub(crate) struct GgufEntry {
    pub tensor_type: TensorType,
    pub dims: Vec<u64>,
    /// In the file.
    pub begin: usize,
    pub end: usize,
}

/// A mapped file and its tables.
#[derive(Debug)]
pub(crate) struct GgufFile {
    pub name: String,
    pub map: Mmap,
    pub metadata: HashMap<String, GgufValue>,
    pub entries: HashMap<String, GgufEntry>,
}

pub(crate) fn open(path: &Path) -> Result<GgufFile, LoadError> {
    let name = file_name(path);
    let map = map_file(path)?;
    let (metadata, entries) = parse(&name, &map)?;
    Ok(GgufFile {
        name,
        map,
        metadata,
        entries,
    })
}

type Tables = (HashMap<String, GgufValue>, HashMap<String, GgufEntry>);

fn parse(name: &str, bytes: &[u8]) -> Result<Tables, LoadError> {
    let mut reader = Reader { name, bytes, at: 0 };
    let magic = reader.take(4)?;
    if magic != b"GGUF" {
        return Err(LoadError::malformed(
            name,
            "the file does not begin with GGUF",
            "a GGUF file",
        ));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(LoadError::unsupported(name, format!("GGUF version {version}"), "2, 3"));
    }
    let (tensor_count, pair_count) = (reader.u64()?, reader.u64()?);
    // The least a pair and a tensor can take: refuses a count that the file cannot hold before anything is reserved for it.
    reader.check_count(pair_count, 13, "metadata pairs")?;
    reader.check_count(tensor_count, 28, "tensors")?;
    let mut metadata = HashMap::new();
    for _ in 0..pair_count {
        let key = reader.text("a metadata key")?;
        let kind = reader.u32()?;
        let value = reader.value(kind, 0, &key)?;
        metadata.insert(key, value);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(GgufValue::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n as usize,
        Some(other) => {
            return Err(LoadError::key(
                name,
                "general.alignment",
                format!("is {other:?}"),
                "a power of two",
            ));
        }
    };
    let mut table = Vec::new();
    for _ in 0..tensor_count {
        let tensor = reader.text("a tensor name")?;
        let dim_count = reader.u32()?;
        if !(1..=4).contains(&dim_count) {
            return Err(LoadError::tensor(
                name,
                &tensor,
                format!("has {dim_count} dimensions"),
                "1 to 4",
            ));
        }
        let dims = (0..dim_count).map(|_| reader.u64()).collect::<Result<Vec<u64>, _>>()?;
        let number = reader.u32()?;
        let Some(tensor_type) = TensorType::from_ggml(number) else {
            let what = format!("tensor {tensor} of GGML type {}", ggml_type_name(number));
            return Err(LoadError::unsupported(name, what, SUPPORTED_TYPES));
        };
        table.push((tensor, tensor_type, dims, reader.u64()?));
    }
    let data_begin = reader.at.next_multiple_of(alignment);
    let mut entries = HashMap::with_capacity(table.len());
    for (tensor, tensor_type, dims, offset) in table {
        let row = usize::try_from(dims[0])
            .ok()
            .and_then(|cols| tensor_type.row_bytes(cols));
        let rows = dims[1..]
            .iter()
            .try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let byte_count = match (row, rows) {
            (Some(row), Some(rows)) => (row as u64).checked_mul(rows),
            _ => None,
        };
        let Some(byte_count) = byte_count else {
            let expected = format!("rows of whole {:?} blocks, and a size that fits", tensor_type);
            return Err(LoadError::tensor(
                name,
                &tensor,
                format!("has dimensions {dims:?}"),
                expected,
            ));
        };
        let begin = (data_begin as u64).checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(byte_count));
        let (Some(begin), Some(end)) = (begin, end.filter(|end| *end <= bytes.len() as u64)) else {
            let found = format!(
                "of {byte_count} bytes at offset {offset} passes the end of the file ({} bytes)",
                bytes.len()
            );
            return Err(LoadError::tensor(
                name,
                &tensor,
                found,
                "data within the file: it is truncated or damaged",
            ));
        };
        let entry = GgufEntry {
            tensor_type,
            dims,
            begin: begin as usize,
            end: end as usize,
        };
        if entries.insert(tensor.clone(), entry).is_some() {
            return Err(LoadError::tensor(name, &tensor, "is there twice", "each tensor once"));
        }
    }
    Ok((metadata, entries))
}

fn ggml_type_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return kind.to_string(),
    };
    name.into()
}

struct Reader<'a> {
    name: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], LoadError> {
        match self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end)) {
            Some(slice) => {
                self.at += count;
                Ok(slice)
            }
            None => Err(LoadError::malformed(
                self.name,
                format!("the file ends at byte {} within its header", self.bytes.len()),
                format!("{count} more bytes at {}: it is truncated or damaged", self.at),
            )),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn check_count(&self, count: u64, bytes_each: u64, what: &str) -> Result<(), LoadError> {
        let left = (self.bytes.len() - self.at) as u64;
        if count.checked_mul(bytes_each).is_none_or(|bytes| bytes > left) {
            let found = format!("{count} {what} in {left} bytes");
            return Err(LoadError::malformed(self.name, found, "counts that the file can hold"));
        }
        Ok(())
    }

    fn text(&mut self, what: &str) -> Result<String, LoadError> {
        let length = self.u64()?;
        if length > STRING_BYTES_MAX {
            let found = format!("{what} of {length} bytes");
            return Err(LoadError::malformed(
                self.name,
                found,
                format!("at most {STRING_BYTES_MAX}"),
            ));
        }
        let at = self.at;
        let bytes = self.take(length as usize)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(LoadError::malformed(
                self.name,
                format!("{what} at byte {at} is not UTF-8"),
                "UTF-8",
            )),
        }
    }

    fn value(&mut self, kind: u32, depth: usize, key: &str) -> Result<GgufValue, LoadError> {
        Ok(match kind {
            0 => GgufValue::Unsigned(self.array::<1>()?[0].into()),
            1 => GgufValue::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => GgufValue::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => GgufValue::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => GgufValue::Unsigned(self.u32()?.into()),
            5 => GgufValue::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => GgufValue::Float(f32::from_le_bytes(self.array()?).into()),
            7 => GgufValue::Bool(self.array::<1>()?[0] != 0),
            8 => GgufValue::Text(self.text(key)?),
            9 => self.skip_array(depth, key)?,
            10 => GgufValue::Unsigned(self.u64()?),
            11 => GgufValue::Signed(i64::from_le_bytes(self.array()?)),
            12 => GgufValue::Float(f64::from_le_bytes(self.array()?)),
            other => {
                return Err(LoadError::key(
                    self.name,
                    key,
                    format!("has value type {other}"),
                    "0 to 12",
                ));
            }
        })
    }

    fn skip_array(&mut self, depth: usize, key: &str) -> Result<GgufValue, LoadError> {
        if depth >= ARRAY_DEPTH_MAX {
            let expected = format!("at most {ARRAY_DEPTH_MAX} levels");
            return Err(LoadError::key(self.name, key, "nests arrays too deep", expected));
        }
        let kind = self.u32()?;
        let len = self.u64()?;
        let fixed = match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        };
        self.check_count(len, fixed.unwrap_or(8), "array elements")?;
        match fixed {
            Some(size) => {
                self.take(len as usize * size as usize)?;
            }
            None if kind == 8 => {
                for _ in 0..len {
                    let length = self.u64()?;
                    self.check_count(length, 1, "string bytes")?;
                    self.take(length as usize)?;
                }
            }
            None => {
                for _ in 0..len {
                    self.value(kind, depth + 1, key)?;
                }
            }
        }
        Ok(GgufValue::Array { len })
    }
}
