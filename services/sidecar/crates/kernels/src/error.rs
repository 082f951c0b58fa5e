//! What a kernel refuses. Shapes are checked once, at the border; inner loops trust them.

/// A call that cannot be carried out as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A buffer has another length than its shape says.
    #[error("{what} has {actual} elements; its shape needs {expected}")]
    ShapeMismatch {
        /// Which buffer.
        what: &'static str,
        /// Elements (or bytes, for packed sources) that the shape needs.
        expected: usize,
        /// Elements found.
        actual: usize,
    },
    /// Quantised rows must be whole blocks.
    #[error("a matrix of this format needs columns in multiples of {block_len}, this one has {cols}")]
    PartialBlock {
        /// Columns of a block.
        block_len: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// A matrix without rows or columns.
    #[error("{what} is empty")]
    Empty {
        /// Which buffer.
        what: &'static str,
    },
}

/// Checks a length against what the shape needs.
pub(crate) fn expect_len(what: &'static str, expected: usize, actual: usize) -> Result<(), KernelError> {
    if expected == actual {
        Ok(())
    } else {
        Err(KernelError::ShapeMismatch { what, expected, actual })
    }
}
