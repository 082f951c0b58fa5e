//! KV at other places: relocation, gather and scatter, deviation.

use super::elementwise::over_rows;
use super::{PoolShape, grid, multiple_of};
use crate::args::Args;
use crate::device::{Buffer, Device, DeviceError, Launch};

/// Operands of [`relocate`].
pub struct Relocate<'a> {
    /// The pool.
    pub pool: &'a Buffer,
    /// u32 `[tokens]`: slots read.
    pub source: &'a Buffer,
    /// u32 `[tokens]`: slots written, of other blocks.
    pub target: &'a Buffer,
    /// f32 `[2, half]`: cosines and sines of the difference of positions; none copies bits.
    pub turn: Option<&'a Buffer>,
    /// Sizes of the pool.
    pub shape: PoolShape,
    /// Tokens.
    pub token_count: usize,
    /// Rotated pairs of a head.
    pub half: usize,
}

/// Copies KV in all layers, keys turned: `kernels/relocate.cu`.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn relocate(device: &dyn Device, op: Relocate<'_>) -> Result<(), DeviceError> {
    if op.token_count == 0 {
        return Ok(());
    }
    let heads = op.shape.layer_count * 2 * op.shape.kv_head_count;
    let arguments = Args::new()
        .buffer(op.pool)
        .buffer(op.source)
        .buffer(op.target)
        .optional(op.turn)
        .pool_shape(&op.shape)
        .count(op.half)
        .finish();
    let launch = Launch {
        file: "relocate",
        kernel: "relocate",
        grid: grid(op.token_count, heads.div_ceil(4)),
        threads: 128,
        shared_bytes: 0,
    };
    device.launch(launch, &arguments)
}

/// Tokens of one block in some layers and heads, and where they lie packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvPiece {
    /// Where its first token lies in the packed form, in elements.
    pub packed: u64,
    /// Tokens of a head in the packed form: as many as the piece has, or more where several make one stretch.
    pub packed_tokens: u32,
    /// Block.
    pub block: u32,
    /// First token.
    pub token_begin: u32,
    /// Tokens.
    pub token_count: u32,
    /// First layer.
    pub layer_begin: u32,
    /// Layers.
    pub layer_count: u32,
    /// First KV head.
    pub head_begin: u32,
    /// KV heads.
    pub head_count: u32,
}

impl KvPiece {
    /// Bytes of one.
    pub const BYTES: usize = 40;

    /// As the kernel reads it.
    pub fn to_bytes(&self, shape: &PoolShape) -> Vec<u8> {
        Args::new()
            .u64(self.packed)
            .u32(self.block * shape.block_size as u32 + self.token_begin)
            .u32(self.token_count)
            .u32(self.layer_begin)
            .u32(self.layer_count)
            .u32(self.head_begin)
            .u32(self.head_count)
            .u32(self.packed_tokens)
            .u32(0)
            .finish()
    }
}

/// Which way KV is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    /// From the pool.
    Gather,
    /// To the pool.
    Scatter,
}

/// Copies pieces between the pool and packed memory: `kernels/kv_copy.cu`. `pieces` are [`KvPiece::to_bytes`] one after another, of at most
/// `layers_max` layers each.
///
/// # Errors
/// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
pub fn kv_copy(
    device: &dyn Device,
    copy: Copy,
    [pool, packed, pieces]: [&Buffer; 3],
    shape: &PoolShape,
    piece_count: usize,
    layers_max: usize,
) -> Result<(), DeviceError> {
    multiple_of("head size", shape.head_size, 8, "multiples of 8")?;
    if piece_count == 0 {
        return Ok(());
    }
    let arguments = Args::new()
        .buffer(pool)
        .buffer(packed)
        .buffer(pieces)
        .pool_shape(shape)
        .finish();
    let launch = Launch {
        file: "kv_copy",
        kernel: match copy {
            Copy::Gather => "kv_gather",
            Copy::Scatter => "kv_scatter",
        },
        grid: grid(piece_count, layers_max * 2 * shape.kv_head_count),
        threads: 128,
        shared_bytes: 0,
    };
    device.launch(launch, &arguments)
}

/// Operands of [`kv_deviation`].
pub struct Deviation<'a> {
    /// The pool.
    pub pool: &'a Buffer,
    /// u32 `[tokens]`: slots with KV computed afresh.
    pub fresh: &'a Buffer,
    /// u32 `[tokens]`: slots with the KV to judge.
    pub cached: &'a Buffer,
    /// f32 `[tokens]`.
    pub deviation: &'a Buffer,
    /// Sizes of the pool.
    pub shape: PoolShape,
    /// Layer to compare.
    pub layer: usize,
    /// Tokens.
    pub token_count: usize,
}

/// Squared distance of each token's KV in one layer: `kernels/deviation.cu`.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn kv_deviation(device: &dyn Device, op: Deviation<'_>) -> Result<(), DeviceError> {
    multiple_of("head size", op.shape.head_size, 2, "even numbers")?;
    over_rows(op.token_count, |first, count| {
        let arguments = Args::new()
            .buffer(op.pool)
            .address(op.fresh.address() + 4 * first as u64)
            .address(op.cached.address() + 4 * first as u64)
            .address(op.deviation.address() + 4 * first as u64)
            .pool_shape(&op.shape)
            .count(op.layer)
            .finish();
        let launch = Launch {
            file: "deviation",
            kernel: "kv_deviation",
            grid: grid(count, 1),
            threads: 128,
            shared_bytes: 0,
        };
        device.launch(launch, &arguments)
    })
}
