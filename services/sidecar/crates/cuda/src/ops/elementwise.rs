//! Embedding, norm, bias and gate.

use super::{ROWS_PER_LAUNCH, grid, multiple_of};
use crate::args::Args;
use crate::device::{Buffer, Device, DeviceError, Launch};

/// Operands of [`rmsnorm`].
pub struct RmsNorm<'a> {
    /// f32 `[rows, width]`; `delta` and `bias` are added in place.
    pub hidden: &'a Buffer,
    /// f32, as `hidden`.
    pub delta: Option<&'a Buffer>,
    /// f32 `[width]`.
    pub bias: Option<&'a Buffer>,
    /// f32 `[width]`.
    pub weight: &'a Buffer,
    /// bf16 `[rows, width]`.
    pub out: &'a Buffer,
    /// u32 `[rows]`: which row of `hidden` and `delta` each row of `out` is of; no row twice.
    pub row_index: Option<&'a Buffer>,
    /// Rows of `out`.
    pub rows: usize,
    /// Elements of a row, a multiple of 4.
    pub width: usize,
    /// Added to the mean.
    pub eps: f32,
}

/// `hidden += delta + bias`, `out = rmsnorm(hidden) · weight`: `kernels/rmsnorm.cu`.
///
/// # Errors
/// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
pub fn rmsnorm(device: &dyn Device, op: RmsNorm<'_>) -> Result<(), DeviceError> {
    multiple_of("width of a norm", op.width, 4, "multiples of 4")?;
    if op.rows == 0 {
        return Ok(());
    }
    let arguments = Args::new()
        .buffer(op.hidden)
        .optional(op.delta)
        .optional(op.bias)
        .buffer(op.weight)
        .buffer(op.out)
        .optional(op.row_index)
        .count(op.width)
        .f32(op.eps)
        .finish();
    let launch = Launch {
        file: "rmsnorm",
        kernel: "rmsnorm",
        grid: grid(op.rows, 1),
        // Fewer threads when there is nothing for them: a row is read as groups of four.
        threads: (op.width / 4).next_multiple_of(32).min(256) as u32,
        shared_bytes: 0,
    };
    device.launch(launch, &arguments)
}

/// `out[i] = table[ids[i]] · scale`; table bf16 `[vocab, width]`, ids u32 `[rows]`, out f32 `[rows, width]`: `kernels/embedding.cu`.
///
/// # Errors
/// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
pub fn embedding(
    device: &dyn Device,
    table: &Buffer,
    ids: &Buffer,
    out: &Buffer,
    [rows, width]: [usize; 2],
    scale: f32,
) -> Result<(), DeviceError> {
    multiple_of("hidden size", width, 8, "multiples of 8")?;
    over_rows(rows, |first, count| {
        let arguments = Args::new()
            .buffer(table)
            .address(ids.address() + 4 * first as u64)
            .address(out.address() + 4 * (first * width) as u64)
            .count(width)
            .f32(scale)
            .finish();
        device.launch(rowwise("embedding", "embedding", width / 8, count), &arguments)
    })
}

/// `x[row] += bias`; x f32 `[rows, width]`, bias f32 `[width]`: `kernels/bias.cu`.
///
/// # Errors
/// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
pub fn add_bias(device: &dyn Device, x: &Buffer, bias: &Buffer, [rows, width]: [usize; 2]) -> Result<(), DeviceError> {
    multiple_of("width of a bias", width, 4, "multiples of 4")?;
    over_rows(rows, |first, count| {
        let arguments = Args::new()
            .address(x.address() + 4 * (first * width) as u64)
            .buffer(bias)
            .count(width)
            .finish();
        device.launch(rowwise("bias", "add_bias", width / 4, count), &arguments)
    })
}

/// The function of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// `out = act(gate) · up`; gate_up bf16 `[rows, 2 · width]`, out bf16 `[rows, width]`: `kernels/gated.cu`.
///
/// # Errors
/// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
pub fn gated(
    device: &dyn Device,
    gate_up: &Buffer,
    out: &Buffer,
    [rows, width]: [usize; 2],
    activation: Activation,
) -> Result<(), DeviceError> {
    multiple_of("intermediate size", width, 8, "multiples of 8")?;
    over_rows(rows, |first, count| {
        let arguments = Args::new()
            .address(gate_up.address() + 4 * (first * width) as u64)
            .address(out.address() + 2 * (first * width) as u64)
            .count(width)
            .u32(activation as u32)
            .finish();
        device.launch(rowwise("gated", "gated", width / 8, count), &arguments)
    })
}

fn rowwise(file: &'static str, kernel: &'static str, groups: usize, rows: usize) -> Launch {
    Launch {
        file,
        kernel,
        grid: grid(groups.div_ceil(128), rows),
        threads: 128,
        shared_bytes: 0,
    }
}

/// Calls `launch(first, count)` for as many rows as a grid has.
pub(super) fn over_rows(
    rows: usize,
    mut launch: impl FnMut(usize, usize) -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    (0..rows)
        .step_by(ROWS_PER_LAUNCH)
        .try_for_each(|first| launch(first, ROWS_PER_LAUNCH.min(rows - first)))
}
