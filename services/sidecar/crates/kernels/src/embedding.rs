//! Looking up embeddings in a packed matrix, so that a tied head needs no second copy.

use crate::aligned::SharedMut;
use crate::cpu::Cpu;
use crate::error::{KernelError, expect_len};
use crate::gemm::PackedMatrix;

/// `out[i] = matrix[ids[i]]`, widened to f32. `out`: `[ids, cols]`, row-major.
///
/// # Errors
/// [`KernelError::ShapeMismatch`] when `out` has another length or an id is not below the matrix's rows.
pub fn gather_rows(cpu: &Cpu, matrix: &PackedMatrix, ids: &[u32], out: &mut [f32]) -> Result<(), KernelError> {
    let cols = matrix.cols();
    expect_len("gathered rows", ids.len() * cols, out.len())?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= matrix.rows()) {
        return Err(KernelError::ShapeMismatch {
            what: "row index + 1",
            expected: matrix.rows(),
            actual: *id as usize + 1,
        });
    }
    let out = SharedMut::new(out);
    cpu.over_rows(ids.len(), &|begin, end| {
        for row in begin..end {
            // SAFETY: the ranges of rows of one region are disjoint.
            let out = unsafe { out.slice(row * cols, cols) };
            let found = matrix.dequantise_row(ids[row] as usize, out);
            debug_assert!(found.is_ok(), "ids and lengths were checked above");
        }
    });
    Ok(())
}
