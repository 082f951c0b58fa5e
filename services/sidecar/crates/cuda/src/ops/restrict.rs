//! Copies of logits that something changes, constraints, and tokens that only the device knows.

use super::grid;
use crate::args::Args;
use crate::device::{Buffer, Device, DeviceError, Launch};

const THREADS: u32 = 256;
/// Logits that one block copies.
const COPIED: usize = 2048;

/// Copies rows: `copy_rows` of `kernels/restrict.cu`. logits f32 `[_, vocab]`; rows u32 `[rows]`; adjusted f32 `[rows, vocab]`.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn copy_rows(
    device: &dyn Device,
    [logits, adjusted, rows]: [&Buffer; 3],
    row_count: usize,
    vocab: usize,
) -> Result<(), DeviceError> {
    if row_count == 0 {
        return Ok(());
    }
    let arguments = Args::new()
        .buffer(logits)
        .buffer(adjusted)
        .buffer(rows)
        .count(vocab)
        .finish();
    let launch = Launch {
        file: "restrict",
        kernel: "copy_rows",
        grid: grid(vocab.div_ceil(COPIED), row_count),
        threads: THREADS,
        shared_bytes: 0,
    };
    device.launch(launch, &arguments)
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
    if row_count == 0 {
        return Ok(());
    }
    let arguments = Args::new()
        .buffer(logits)
        .buffer(adjusted)
        .buffer(rows)
        .buffer(bits)
        .count(vocab)
        .finish();
    let launch = Launch {
        file: "restrict",
        kernel: "mask_rows",
        grid: grid(row_count, 1),
        threads: THREADS,
        shared_bytes: 0,
    };
    device.launch(launch, &arguments)
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
    if row_count == 0 {
        return Ok(());
    }
    let arguments = Args::new()
        .buffer(tokens)
        .buffer(rows)
        .buffer(ids)
        .count(row_count)
        .finish();
    let launch = Launch {
        file: "chosen_tokens",
        kernel: "chosen_tokens",
        grid: grid(row_count.div_ceil(128), 1),
        threads: 128,
        shared_bytes: 0,
    };
    device.launch(launch, &arguments)
}
