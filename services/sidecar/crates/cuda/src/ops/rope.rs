//! Rotation, and the store of keys and values.

use super::elementwise::over_rows;
use super::{PoolShape, grid};
use crate::args::Args;
use crate::device::{Buffer, Device, DeviceError, Launch};

/// Operands of [`rope_table`].
pub struct RopeTable<'a> {
    /// u32 `[rows]`.
    pub positions: &'a Buffer,
    /// f32 `[half]`.
    pub frequencies: &'a Buffer,
    /// f32 `[rows, 2, half]`.
    pub table: &'a Buffer,
    /// Rows.
    pub rows: usize,
    /// Frequencies.
    pub half: usize,
    /// Factor of cosines and sines.
    pub scale: f32,
}

/// Cosines and sines of each row: `kernels/rope_table.cu`.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn rope_table(device: &dyn Device, op: RopeTable<'_>) -> Result<(), DeviceError> {
    over_rows(op.rows, |first, count| {
        let arguments = Args::new()
            .address(op.positions.address() + 4 * first as u64)
            .buffer(op.frequencies)
            .address(op.table.address() + 8 * (first * op.half) as u64)
            .count(op.half)
            .f32(op.scale)
            .finish();
        let launch = Launch {
            file: "rope_table",
            kernel: "rope_table",
            grid: grid(op.half.div_ceil(64), count),
            threads: 64,
            shared_bytes: 0,
        };
        device.launch(launch, &arguments)
    })
}

/// Operands of [`rotate_and_store`].
pub struct RotateAndStore<'a> {
    /// f32 `[rows, head_count + 2 kv_head_count, head_size]`.
    pub qkv: &'a Buffer,
    /// From [`rope_table`].
    pub table: &'a Buffer,
    /// f32 `[head_size]` each, of queries and of keys.
    pub norms: Option<[&'a Buffer; 2]>,
    /// u32 `[rows]`: block · block_size + token; no slot twice.
    pub slots: &'a Buffer,
    /// bf16 `[rows, head_count, head_size]`.
    pub query: &'a Buffer,
    /// The pool.
    pub pool: &'a Buffer,
    /// Its sizes.
    pub shape: PoolShape,
    /// Layer.
    pub layer: usize,
    /// Query heads.
    pub head_count: usize,
    /// Rows.
    pub rows: usize,
    /// Rotated pairs of a head.
    pub half: usize,
    /// Of the norms.
    pub eps: f32,
}

/// Norms, rotates and rounds queries and keys, and stores keys and values: `kernels/rotate_and_store.cu`.
///
/// # Errors
/// [`DeviceError::Unsupported`] when more is rotated than there is, [`DeviceError::Failed`].
pub fn rotate_and_store(device: &dyn Device, op: RotateAndStore<'_>) -> Result<(), DeviceError> {
    if 2 * op.half > op.shape.head_size {
        return Err(DeviceError::Unsupported {
            what: "rotated size",
            value: 2 * op.half,
            allowed: "at most the head size",
        });
    }
    if op.rows == 0 {
        return Ok(());
    }
    let heads = op.head_count + 2 * op.shape.kv_head_count;
    let [query_norm, key_norm] = op.norms.map_or([None, None], |norms| norms.map(Some));
    let arguments = Args::new()
        .buffer(op.qkv)
        .buffer(op.table)
        .optional(query_norm)
        .optional(key_norm)
        .buffer(op.slots)
        .buffer(op.query)
        .buffer(op.pool)
        .pool_shape(&op.shape)
        .count(op.layer)
        .count(op.head_count)
        .count(op.half)
        .f32(op.eps)
        .finish();
    let launch = Launch {
        file: "rotate_and_store",
        kernel: "rotate_and_store",
        grid: grid(op.rows, heads.div_ceil(4)),
        threads: 128,
        shared_bytes: 0,
    };
    device.launch(launch, &arguments)
}
