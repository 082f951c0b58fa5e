//! Rows of activations in every form that some weight multiplies.

use super::dense_rows::DenseRows;
use super::pack::{Form, PackedMatrix};
use super::rows::QuantisedRows;
use crate::cpu::Cpu;
use crate::error::{KernelError, expect_len};

/// Activations `[rows, cols]` made ready for the weights that will multiply them. Keeps its buffers between calls.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    pub(super) quantised: QuantisedRows,
    pub(super) single: DenseRows,
    pub(super) pairs: DenseRows,
}

impl Activations {
    /// Replaces the content by `x`, row-major, in the forms that `weights` ask for. A row's forms depend on that row only.
    ///
    /// # Errors
    /// [`KernelError::ShapeMismatch`] when `x` is not `rows` rows of the weights' columns; [`KernelError::PartialBlock`].
    pub fn prepare(&mut self, cpu: &Cpu, x: &[f32], rows: usize, weights: &[&PackedMatrix]) -> Result<(), KernelError> {
        let needs = |form: Form| weights.iter().any(|matrix| matrix.weight_type().form() == form);
        let cols = weights.first().map_or(0, |matrix| matrix.cols());
        expect_len("activations", rows * cols, x.len())?;
        self.rows = rows;
        // A form that is not needed now is emptied: what an earlier call left there must not pass for this one's.
        let rows_of = |form: Form| if needs(form) { rows } else { 0 };
        let of = |rows: usize| &x[..rows * cols];
        let (quantised, single, pairs) = (rows_of(Form::Quantised), rows_of(Form::Single), rows_of(Form::Pairs));
        self.quantised.quantise(cpu, of(quantised), quantised, cols)?;
        self.single.fill_single(cpu, of(single), single, cols);
        self.pairs.fill_pairs(cpu, of(pairs), pairs, cols);
        Ok(())
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Checks that the form that `weights` multiply is here.
    pub(super) fn check(&self, weights: &PackedMatrix) -> Result<(), KernelError> {
        let cols = weights.cols();
        match weights.weight_type().form() {
            Form::Quantised => self.quantised.expect_shape(self.rows, cols),
            Form::Single => self.single.expect_shape(self.rows, cols),
            Form::Pairs => self.pairs.expect_shape(self.rows, cols),
        }
    }
}
