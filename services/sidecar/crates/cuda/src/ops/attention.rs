//! Attention over the paged pool.

use super::{PoolShape, grid};
use crate::args::Args;
use crate::device::{Buffer, Device, DeviceError, Launch};

/// Keys of a tile; partitions are multiples of it.
pub const KEYS: usize = 64;
/// Head sizes that attention has kernels for.
pub const HEAD_SIZES: &str = "16, 32, 64, 96, 128 and 256";

/// Queries that share a walk over keys; see `kernels/attention.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionTile {
    /// Where its block table begins in the tables.
    pub table_begin: u32,
    /// Place in the list of rows.
    pub row_begin: u32,
    /// First packed row (row · group + head of the group), counted from `row_begin`.
    pub packed_begin: u32,
    /// Packed rows: at most 64, or 16 for decode.
    pub packed_count: u32,
    /// First key, a multiple of the partition.
    pub key_begin: u32,
    /// One past the last key.
    pub key_end: u32,
}

impl AttentionTile {
    /// As the kernel reads it.
    pub fn words(&self) -> [u32; 6] {
        [
            self.table_begin,
            self.row_begin,
            self.packed_begin,
            self.packed_count,
            self.key_begin,
            self.key_end,
        ]
    }
}

/// Operands of [`attention_rows`] and [`attention_decode`].
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// bf16 `[rows, head_count, head_size]`.
    pub query: &'a Buffer,
    /// The pool.
    pub pool: &'a Buffer,
    /// u32: block tables.
    pub tables: &'a Buffer,
    /// [`AttentionTile::words`] one after another.
    pub tiles: &'a Buffer,
    /// u32: rows of the query, by place.
    pub rows: &'a Buffer,
    /// u32: position of each row of the query.
    pub positions: &'a Buffer,
    /// As `query`.
    pub out: &'a Buffer,
    /// With partitions: f32 `[places, head_count, slot_count, head_size]` and `[places, head_count, slot_count, 2]`.
    pub partials: Option<[&'a Buffer; 2]>,
    /// Sizes of the pool.
    pub shape: PoolShape,
    /// Layer.
    pub layer: usize,
    /// Query heads.
    pub head_count: usize,
    /// Tiles.
    pub tile_count: usize,
    /// Keys of a partition, a multiple of [`KEYS`]; 0 without.
    pub partition: usize,
    /// Partitions of the longest context.
    pub slot_count: usize,
}

impl Attention<'_> {
    fn run(&self, device: &dyn Device, kind: Kind) -> Result<(), DeviceError> {
        let group = self.head_count / self.shape.kv_head_count.max(1);
        if group == 0 || group * self.shape.kv_head_count != self.head_count {
            return Err(DeviceError::Unsupported {
                what: "query heads",
                value: self.head_count,
                allowed: "multiples of the KV heads",
            });
        }
        if !self.partition.is_multiple_of(KEYS) || (self.partition > 0) != self.partials.is_some() {
            return Err(DeviceError::Unsupported {
                what: "partition",
                value: self.partition,
                allowed: "multiples of 64, with memory for partial sums",
            });
        }
        if self.tile_count == 0 {
            return Ok(());
        }
        let (kernel, teams, slots_per_block, threads) = kind.kernel(self.shape.head_size)?;
        let slots = if self.partition == 0 { 1 } else { self.slot_count };
        let [sums, stats] = self.partials.map_or([None, None], |partials| partials.map(Some));
        let scale = std::f64::consts::LOG2_E / (self.shape.head_size as f64).sqrt();
        let arguments = Args::new()
            .buffer(self.query)
            .buffer(self.pool)
            .buffer(self.tables)
            .buffer(self.tiles)
            .buffer(self.rows)
            .buffer(self.positions)
            .buffer(self.out)
            .optional(sums)
            .optional(stats)
            .pool_shape(&self.shape)
            .count(self.layer)
            .count(self.head_count)
            .count(self.partition)
            .count(self.slot_count)
            .f32(scale as f32)
            .finish();
        let [x, y, _] = grid(self.tile_count, self.shape.kv_head_count);
        let launch = Launch {
            file: kind.file(),
            kernel,
            grid: [x, y, slots.div_ceil(slots_per_block) as u32],
            threads,
            shared_bytes: teams * 2 * KEYS * (self.shape.head_size + 8) * 2,
        };
        device.launch(launch, &arguments)
    }
}

/// Whether attention has kernels for a head size.
pub fn has_head_size(head_size: usize) -> bool {
    Kind::Rows.kernel(head_size).is_ok()
}

#[derive(Clone, Copy)]
enum Kind {
    Rows,
    Decode,
}

impl Kind {
    fn file(self) -> &'static str {
        match self {
            Self::Rows => "attention_rows",
            Self::Decode => "attention_decode",
        }
    }

    /// Kernel, teams with key tiles of their own, partitions of a block, threads.
    fn kernel(self, head_size: usize) -> Result<(&'static str, usize, usize, u32), DeviceError> {
        let [rows, decode] = match head_size {
            16 => ["attention_rows_16", "attention_decode_16"],
            32 => ["attention_rows_32", "attention_decode_32"],
            64 => ["attention_rows_64", "attention_decode_64"],
            96 => ["attention_rows_96", "attention_decode_96"],
            128 => ["attention_rows_128", "attention_decode_128"],
            256 => ["attention_rows_256", "attention_decode_256"],
            value => {
                return Err(DeviceError::Unsupported {
                    what: "head size",
                    value,
                    allowed: HEAD_SIZES,
                });
            }
        };
        Ok(match self {
            Self::Rows => (rows, 1, 1, 128),
            // Two key tiles of this size have no room in an SM of compute capability 8.9.
            Self::Decode if head_size > 128 => (decode, 1, 1, 32),
            Self::Decode => (decode, 2, 2, 64),
        })
    }
}

/// Tiles of up to 64 packed rows: `kernels/attention_rows.cu`.
///
/// # Errors
/// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
pub fn attention_rows(device: &dyn Device, op: Attention<'_>) -> Result<(), DeviceError> {
    op.run(device, Kind::Rows)
}

/// Tiles of up to 16 packed rows: `kernels/attention_decode.cu`.
///
/// # Errors
/// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
pub fn attention_decode(device: &dyn Device, op: Attention<'_>) -> Result<(), DeviceError> {
    op.run(device, Kind::Decode)
}

/// Operands of [`attention_combine`], as in [`Attention`].
#[derive(Clone, Copy)]
pub struct Combine<'a> {
    /// Partial sums and stats.
    pub partials: [&'a Buffer; 2],
    /// u32: rows, by place.
    pub rows: &'a Buffer,
    /// u32: positions, by row.
    pub positions: &'a Buffer,
    /// bf16 `[rows, head_count, head_size]`.
    pub out: &'a Buffer,
    /// Places.
    pub place_count: usize,
    /// Query heads.
    pub head_count: usize,
    /// Elements of a head.
    pub head_size: usize,
    /// Keys of a partition.
    pub partition: usize,
    /// Partitions of the longest context.
    pub slot_count: usize,
}

/// Joins partitions: `kernels/attention_combine.cu`.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn attention_combine(device: &dyn Device, op: Combine<'_>) -> Result<(), DeviceError> {
    if op.place_count == 0 {
        return Ok(());
    }
    let [sums, stats] = op.partials;
    let arguments = Args::new()
        .buffer(sums)
        .buffer(stats)
        .buffer(op.rows)
        .buffer(op.positions)
        .buffer(op.out)
        .count(op.head_count)
        .count(op.head_size)
        .count(op.partition)
        .count(op.slot_count)
        .finish();
    let launch = Launch {
        file: "attention_combine",
        kernel: "attention_combine",
        grid: grid(op.place_count, op.head_count.div_ceil(4)),
        threads: 128,
        shared_bytes: 0,
    };
    device.launch(launch, &arguments)
}
