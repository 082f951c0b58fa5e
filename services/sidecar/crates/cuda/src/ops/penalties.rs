//! Changes to logits before a token is chosen: `kernels/penalties.cu`.

use super::grid;
use crate::args::Args;
use crate::device::{Buffer, Device, DeviceError, Launch};

/// Tokens that one block goes through, and its threads.
const STRETCH: usize = 2048;
const STRETCH_THREADS: u32 = 256;
/// Threads of a block over entries.
const ENTRY_THREADS: u32 = 128;

/// A token that a sequence has in its prompt or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenToken {
    /// Which row of what was seen.
    pub slot: u32,
    /// Token.
    pub token: u32,
    /// Occurrences in the output.
    pub count: u32,
}

impl SeenToken {
    /// As the kernel reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        Args::new().u32(self.slot).u32(self.token).u32(self.count).finish()
    }
}

/// Penalties of one row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PenaltyRow {
    /// Row of the logits.
    pub row: u32,
    /// Row of what was seen.
    pub slot: u32,
    /// Divides positive and multiplies negative logits of tokens seen.
    pub repetition: f32,
    /// Taken once for each occurrence in the output.
    pub frequency: f32,
    /// Taken when the output has it.
    pub presence: f32,
}

impl PenaltyRow {
    /// As the kernel reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        Args::new()
            .u32(self.row)
            .u32(self.slot)
            .f32(self.repetition)
            .f32(self.frequency)
            .f32(self.presence)
            .finish()
    }
}

/// A change of one logit; of one list no two name the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitEdit {
    /// Row of the logits.
    pub row: u32,
    /// Token.
    pub token: u32,
    /// Added, or minus infinity put in its place: `None`.
    pub bias: Option<f32>,
}

impl LogitEdit {
    /// As the kernel reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        Args::new()
            .u32(self.row)
            .u32(self.token)
            .f32(self.bias.unwrap_or(0.0))
            .u32(u32::from(self.bias.is_none()))
            .finish()
    }
}

/// Empties slots: seen u32 `[_, vocab]`; slots u32 `[slots]`.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn forget_seen(
    device: &dyn Device,
    [seen, slots]: [&Buffer; 2],
    slot_count: usize,
    vocab: usize,
) -> Result<(), DeviceError> {
    let arguments = Args::new().buffer(seen).buffer(slots).count(vocab).finish();
    over_stretches(device, "forget_seen", [vocab, slot_count], &arguments)
}

/// Notes tokens: seen u32 `[_, vocab]`; entries [`SeenToken::to_bytes`].
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn note_seen(
    device: &dyn Device,
    [seen, entries]: [&Buffer; 2],
    entry_count: usize,
    vocab: usize,
) -> Result<(), DeviceError> {
    over_entries(device, "note_seen", [seen, entries], entry_count, vocab)
}

/// Penalises tokens seen, in place: logits f32 `[_, vocab]`; seen u32 `[_, vocab]`; rows [`PenaltyRow::to_bytes`].
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn penalties(
    device: &dyn Device,
    [logits, seen, rows]: [&Buffer; 3],
    row_count: usize,
    vocab: usize,
) -> Result<(), DeviceError> {
    let arguments = Args::new()
        .buffer(logits)
        .buffer(seen)
        .buffer(rows)
        .count(vocab)
        .finish();
    over_stretches(device, "penalties", [vocab, row_count], &arguments)
}

/// Changes single logits in place: logits f32 `[_, vocab]`; entries [`LogitEdit::to_bytes`].
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn edit_logits(
    device: &dyn Device,
    [logits, entries]: [&Buffer; 2],
    entry_count: usize,
    vocab: usize,
) -> Result<(), DeviceError> {
    over_entries(device, "edit_logits", [logits, entries], entry_count, vocab)
}

fn over_stretches(
    device: &dyn Device,
    kernel: &'static str,
    [vocab, rows]: [usize; 2],
    arguments: &[u8],
) -> Result<(), DeviceError> {
    if rows == 0 {
        return Ok(());
    }
    let launch = Launch {
        file: "penalties",
        kernel,
        grid: grid(vocab.div_ceil(STRETCH), rows),
        threads: STRETCH_THREADS,
        shared_bytes: 0,
    };
    device.launch(launch, arguments)
}

fn over_entries(
    device: &dyn Device,
    kernel: &'static str,
    [changed, entries]: [&Buffer; 2],
    entry_count: usize,
    vocab: usize,
) -> Result<(), DeviceError> {
    if entry_count == 0 {
        return Ok(());
    }
    let arguments = Args::new()
        .buffer(changed)
        .buffer(entries)
        .count(entry_count)
        .count(vocab)
        .finish();
    let launch = Launch {
        file: "penalties",
        kernel,
        grid: grid(entry_count.div_ceil(ENTRY_THREADS as usize), 1),
        threads: ENTRY_THREADS,
        shared_bytes: 0,
    };
    device.launch(launch, &arguments)
}
