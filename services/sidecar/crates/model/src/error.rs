//! What can be wrong with model files.

/// A model that cannot be opened. Displays as one line: file, tensor or key, what was found, what was expected.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("{file}: {source}")]
    Io {
        /// Which file.
        file: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The path holds no model.
    #[error("{file}: {expected}")]
    NotAModel {
        /// Which path.
        file: String,
        /// What should be there.
        expected: String,
    },
    /// The file's structure is broken.
    #[error("{file}: {found}; expected {expected}")]
    Malformed {
        /// Which file.
        file: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A configuration value is missing or wrong.
    #[error("{file}: {key} {found}; expected {expected}")]
    Key {
        /// Which file.
        file: String,
        /// Which key.
        key: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// The model is of a kind that this engine does not run.
    #[error("{file}: {what} is not supported; supported: {supported}")]
    Unsupported {
        /// Which file.
        file: String,
        /// What it asks for.
        what: String,
        /// What there is.
        supported: String,
    },
    /// A tensor is missing.
    #[error("{file}: tensor {tensor} is missing; expected {expected}")]
    MissingTensor {
        /// Where it was looked for.
        file: String,
        /// Its name.
        tensor: String,
        /// Its shape.
        expected: String,
    },
    /// A tensor is not what the configuration asks for.
    #[error("{file}: tensor {tensor} {found}; expected {expected}")]
    Tensor {
        /// Which file.
        file: String,
        /// Its name.
        tensor: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
}

impl LoadError {
    pub(crate) fn malformed(file: &str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Malformed {
            file: file.into(),
            found: one_line(found.into()),
            expected: expected.into(),
        }
    }

    pub(crate) fn key(file: &str, key: &str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Key {
            file: file.into(),
            key: one_line(key.into()),
            found: one_line(found.into()),
            expected: expected.into(),
        }
    }

    pub(crate) fn tensor(file: &str, tensor: &str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Tensor {
            file: file.into(),
            tensor: one_line(tensor.into()),
            found: one_line(found.into()),
            expected: expected.into(),
        }
    }

    pub(crate) fn unsupported(file: &str, what: impl Into<String>, supported: impl Into<String>) -> Self {
        Self::Unsupported {
            file: file.into(),
            what: one_line(what.into()),
            supported: supported.into(),
        }
    }
}

/// Names come from the file: control characters and endless text must not break the one line.
fn one_line(text: String) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(200)
        .collect();
    clean
}
