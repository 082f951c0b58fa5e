//! The own matrix product.

use super::{grid, multiple_of};
use crate::args::Args;
use crate::device::{Buffer, Device, DeviceError, Launch};

/// Operands of [`gemm`]: `out = x · weightsᵀ`.
pub struct Gemm<'a> {
    /// bf16 `[rows, inner]`.
    pub x: &'a Buffer,
    /// bf16 `[cols, inner]`.
    pub weights: &'a Buffer,
    /// `[rows, cols]`.
    pub out: &'a Buffer,
    /// Whether `out` is f32, else bf16.
    pub is_f32: bool,
    /// Rows of `x`.
    pub rows: usize,
    /// Rows of `weights`.
    pub cols: usize,
    /// Length of each sum.
    pub inner: usize,
}

/// Which of the kernel's two shapes; both give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmShape {
    /// 128 rows and columns a block.
    Tall,
    /// 16 rows and 32 columns a block.
    Flat,
}

impl GemmShape {
    /// The faster one: with few rows a tall block would mostly multiply nothing.
    pub fn for_rows(rows: usize) -> Self {
        if rows <= 32 { Self::Flat } else { Self::Tall }
    }
}

/// `kernels/gemm.cu`: an element depends on its row and column only, whatever the number of rows.
///
/// # Errors
/// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
pub fn gemm(device: &dyn Device, op: &Gemm<'_>, shape: GemmShape) -> Result<(), DeviceError> {
    multiple_of("inner size of a product", op.inner, 8, "multiples of 8")?;
    if op.rows == 0 {
        return Ok(());
    }
    const STRIDE: usize = 72;
    let (kernel, rows, cols, threads, stages) = match (shape, op.is_f32) {
        (GemmShape::Tall, true) => ("gemm_tall_f32", 128, 128, 256, 2),
        (GemmShape::Tall, false) => ("gemm_tall_bf16", 128, 128, 256, 2),
        (GemmShape::Flat, true) => ("gemm_flat_f32", 16, 32, 128, 4),
        (GemmShape::Flat, false) => ("gemm_flat_bf16", 16, 32, 128, 4),
    };
    let arguments = Args::new()
        .buffer(op.x)
        .buffer(op.weights)
        .buffer(op.out)
        .count(op.rows)
        .count(op.cols)
        .count(op.inner)
        .finish();
    let launch = Launch {
        file: "gemm",
        kernel,
        grid: grid(op.cols.div_ceil(cols), op.rows.div_ceil(rows)),
        threads,
        shared_bytes: stages * (rows + cols) * STRIDE * 2,
    };
    device.launch(launch, &arguments)
}
