//! Copies of logits that something changes, constraints, and tokens that only the device knows.

use super::grid;
use crate::args::Args;
use crate::device::{Buffer, Device, DeviceError, Launch};

/// Logits that one block copies.
const COPIED: usize = 2048;

/// Copies rows: `copy_rows` of `kernels/restrict.cu`. logits f32 `[_, vocab]`; adjusted f32 `[rows, vocab]`; rows u32 `[rows]`.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn copy_rows(
    device: &dyn Device,
    [logits, adjusted, rows]: [&Buffer; 3],
    row_count: usize,
    vocab: usize,
) -> Result<(), DeviceError> {
    let launch = of_rows(["restrict", "copy_rows"], [vocab.div_ceil(COPIED), row_count], 256);
    run(device, launch, &[logits, adjusted, rows], vocab)
}

/// Forbids what constraints do not allow: `mask_rows` of `kernels/restrict.cu`. `rows` are pairs of u32, row of the logits and of the adjusted
/// ones; `bits` u32 `[rows, ceil(vocab / 32)]`.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn mask_rows(
    device: &dyn Device,
    [logits, adjusted, rows, bits]: [&Buffer; 4],
    row_count: usize,
    vocab: usize,
) -> Result<(), DeviceError> {
    let launch = of_rows(["restrict", "mask_rows"], [row_count, 1], 256);
    run(device, launch, &[logits, adjusted, rows, bits], vocab)
}

/// `ids[row] = tokens[from]` for pairs (row, from) of u32: `kernels/chosen_tokens.cu`.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn chosen_tokens(
    device: &dyn Device,
    [tokens, rows, ids]: [&Buffer; 3],
    row_count: usize,
) -> Result<(), DeviceError> {
    let launch = of_rows(["chosen_tokens"; 2], [row_count.div_ceil(128), 1], 128);
    run(device, launch, &[tokens, rows, ids], row_count)
}

fn of_rows([file, kernel]: [&'static str; 2], [x, y]: [usize; 2], threads: u32) -> Launch {
    Launch {
        file,
        kernel,
        grid: grid(x, y),
        threads,
        shared_bytes: 0,
    }
}

/// Launches a kernel whose arguments are buffers and a count, unless there are no rows for it.
fn run(device: &dyn Device, launch: Launch, buffers: &[&Buffer], count: usize) -> Result<(), DeviceError> {
    if launch.grid.contains(&0) {
        return Ok(());
    }
    let arguments = buffers.iter().copied().fold(Args::new(), Args::buffer);
    device.launch(launch, &arguments.count(count).finish())
}
