//! Attention of one layer over planned rows: up to four launches.

use crate::device::{Buffer, Device, DeviceError};
use crate::ops::{Attention, AttentionTile, Combine, PoolShape, attention_combine, attention_decode, attention_rows};
use crate::step_plan::StepRows;

/// A step's rows on the device: one upload, in parts.
pub struct DeviceRows {
    /// u32 by row.
    pub positions: Buffer,
    /// u32 by row.
    pub slots: Buffer,
    /// What the caller added, in its order.
    pub extra: Vec<Buffer>,
    tables: Buffer,
    rows: Buffer,
    row_tiles: Buffer,
    prefix_tiles: Buffer,
    decode_tiles: Buffer,
}

impl DeviceRows {
    /// Words that [`DeviceRows::upload`] writes.
    pub fn words(plan: &StepRows, extra: &[Vec<u32>]) -> usize {
        Self::parts(plan, extra).iter().map(|part| aligned(part.len())).sum()
    }

    /// Tables come last: as long as the rest keeps its lengths, it keeps its places.
    fn parts(plan: &StepRows, extra: &[Vec<u32>]) -> Vec<Vec<u32>> {
        let words = |tiles: &[AttentionTile]| tiles.iter().flat_map(|tile| tile.words()).collect::<Vec<u32>>();
        let mut parts = vec![
            plan.positions.clone(),
            plan.slots.clone(),
            plan.rows.clone(),
            words(&plan.row_tiles),
            words(&plan.prefix_tiles),
            words(&plan.decode_tiles),
        ];
        parts.extend_from_slice(extra);
        parts.push(plan.tables.clone());
        parts
    }

    /// Writes the plan, and words of the caller's, to the beginning of `memory`.
    ///
    /// # Errors
    /// [`DeviceError::Range`] when it holds fewer than [`DeviceRows::words`], [`DeviceError::Failed`].
    pub fn upload(
        device: &dyn Device,
        memory: &Buffer,
        plan: &StepRows,
        extra: &[Vec<u32>],
    ) -> Result<Self, DeviceError> {
        let mut bytes = Vec::new();
        let mut buffers = Vec::new();
        for part in Self::parts(plan, extra) {
            buffers.push(memory.part(bytes.len(), 4 * aligned(part.len()))?);
            bytes.extend(part.iter().flat_map(|word| word.to_ne_bytes()));
            bytes.resize(bytes.len() + 4 * (aligned(part.len()) - part.len()), 0);
        }
        device.write(memory, 0, &bytes)?;
        let lost = || DeviceError::Failed("a plan has seven parts".into());
        let tables = buffers.pop().ok_or_else(lost)?;
        let extra = buffers.split_off(6);
        let buffers: [Buffer; 6] = buffers.try_into().map_err(|_| lost())?;
        let [positions, slots, rows, row_tiles, prefix_tiles, decode_tiles] = buffers;
        Ok(Self {
            positions,
            slots,
            extra,
            tables,
            rows,
            row_tiles,
            prefix_tiles,
            decode_tiles,
        })
    }
}

/// Parts begin at multiples of 16 bytes.
fn aligned(words: usize) -> usize {
    words.next_multiple_of(4)
}

/// Operands of [`attend`].
pub struct Attend<'a> {
    /// bf16 `[rows, head_count, head_size]`.
    pub query: &'a Buffer,
    /// The pool.
    pub pool: &'a Buffer,
    /// As `query`.
    pub out: &'a Buffer,
    /// Of at least [`partial_bytes`]; none when that is 0.
    pub partials: Option<[&'a Buffer; 2]>,
    /// Sizes of the pool.
    pub shape: PoolShape,
    /// Layer.
    pub layer: usize,
    /// Query heads.
    pub head_count: usize,
    /// Keys of a partition, as in the plan's division.
    pub partition: usize,
}

/// Bytes of partial sums and of partial stats.
pub fn partial_bytes(plan: &StepRows, head_count: usize, head_size: usize) -> [usize; 2] {
    let places = plan.decode_places * head_count * plan.slot_count;
    [places * head_size * 4, places * 8]
}

/// Attention of all rows in one layer.
///
/// # Errors
/// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
pub fn attend(device: &dyn Device, plan: &StepRows, rows: &DeviceRows, op: &Attend<'_>) -> Result<(), DeviceError> {
    let whole = Attention {
        query: op.query,
        pool: op.pool,
        tables: &rows.tables,
        tiles: &rows.row_tiles,
        rows: &rows.rows,
        positions: &rows.positions,
        out: op.out,
        partials: None,
        shape: op.shape,
        layer: op.layer,
        head_count: op.head_count,
        tile_count: plan.row_tiles.len(),
        partition: 0,
        slot_count: 1,
    };
    attention_rows(device, whole)?;
    let decode = Attention {
        tiles: &rows.decode_tiles,
        tile_count: plan.decode_tiles.len(),
        partials: op.partials,
        partition: op.partition,
        slot_count: plan.slot_count,
        ..whole
    };
    if plan.decode_tiles.is_empty() {
        return Ok(());
    }
    if op.partition == 0 {
        return attention_decode(device, decode);
    }
    let prefix = Attention {
        tiles: &rows.prefix_tiles,
        tile_count: plan.prefix_tiles.len(),
        ..decode
    };
    attention_rows(device, prefix)?;
    attention_decode(device, decode)?;
    let Some(partials) = op.partials else {
        return Err(DeviceError::Failed("partitions without memory for partial sums".into()));
    };
    let combine = Combine {
        partials,
        rows: &rows.rows,
        positions: &rows.positions,
        out: op.out,
        place_count: plan.decode_places,
        head_count: op.head_count,
        head_size: op.shape.head_size,
        partition: op.partition,
        slot_count: plan.slot_count,
    };
    attention_combine(device, combine)
}
