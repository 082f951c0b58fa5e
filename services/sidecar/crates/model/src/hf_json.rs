//! Reading Hugging Face's JSON files and their values.

use std::path::Path;

use serde_json::Value;

use crate::LoadError;

pub(crate) const FILE: &str = "config.json";
const JSON_BYTES_MAX: u64 = 16 << 20;

/// A file's bytes, if they are not too many for what it is.
pub(crate) fn read_json(path: &Path) -> Result<Vec<u8>, LoadError> {
    let io = |source| LoadError::Io {
        file: path.display().to_string(),
        source,
    };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > JSON_BYTES_MAX {
        let name = crate::mapped::file_name(path);
        return Err(LoadError::malformed(
            &name,
            format!("{length} bytes"),
            format!("at most {JSON_BYTES_MAX}"),
        ));
    }
    std::fs::read(path).map_err(io)
}

/// A value that is there and not null.
pub(crate) fn present(value: &Option<Value>) -> Option<&Value> {
    value.as_ref().filter(|value| !value.is_null())
}

pub(crate) fn size(key: &str, value: Option<&Value>) -> Result<usize, LoadError> {
    match value {
        Some(Value::Number(number)) => match number.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(size) => Ok(size),
            None => Err(LoadError::key(FILE, key, format!("is {number}"), "a whole number")),
        },
        Some(other) => Err(LoadError::key(FILE, key, format!("is {other}"), "a whole number")),
        None => Err(LoadError::key(FILE, key, "is absent", "a whole number")),
    }
}

pub(crate) fn number(key: &str, value: &Value) -> Result<f64, LoadError> {
    value
        .as_f64()
        .ok_or_else(|| LoadError::key(FILE, key, format!("is {value}"), "a number"))
}

/// One id, a list of ids, or nothing.
pub(crate) fn token_ids(file: &str, key: &str, value: Option<&Value>) -> Result<Vec<u32>, LoadError> {
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| LoadError::key(file, key, format!("is {value}"), "a token id or a list of them"))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}
